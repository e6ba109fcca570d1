"""Runs tasks of lm-evaluation-harness on rows of ours. It imports the harness, and nothing of sea-export.

Argument: a JSON file with the model's directory, the dtype, where the answer goes, and for each task its rows.
"""

import json
import sys
from pathlib import Path

import lm_eval
from lm_eval.tasks import TaskManager


def main(request_file: Path) -> None:
    """Writes, for each task and metric, the harness's figure of every row, in the rows' order."""
    request = json.loads(request_file.read_text(encoding="utf-8"))
    tasks = []
    for name, rows in request["tasks"].items():
        file = request_file.with_name(f"{name}.jsonl")
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        split = "test" if name.startswith("crows_pairs") else "validation"
        # The task is the harness's own; only the rows come from somewhere else.
        (own,) = (Path(lm_eval.__file__).parent / "tasks").rglob(f"{name}.yaml")
        source = {"dataset_path": "json", "dataset_name": None, "dataset_kwargs": {"data_files": {split: str(file)}}}
        task = request_file.with_name(f"{name}.yaml")
        task.write_text(json.dumps({"include": str(own), "task": name, **source}), encoding="utf-8")
        tasks.append(str(task))
    results = lm_eval.simple_evaluate(
        model="hf",
        model_args={"pretrained": request["model"], "dtype": request["dtype"]},
        tasks=tasks,
        batch_size=4,
        device="cpu",
        bootstrap_iters=0,
        task_manager=TaskManager(),
    )
    answer = {}
    for name, samples in results["samples"].items():
        ordered = sorted(samples, key=lambda sample: sample["doc_id"])
        metrics = results["configs"][name]["metric_list"]
        answer[name] = {metric["metric"]: [float(sample[metric["metric"]]) for sample in ordered] for metric in metrics}
    Path(request["answer"]).write_text(json.dumps(answer), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
