"""An export in lm-evaluation-harness: log-likelihoods of the choices of a task of our own, by its command line."""

import json
import subprocess
import sys
from pathlib import Path

TASK = "downstream_choices"


def probe(request: dict) -> list[list[float]]:
    scratch = Path(request["scratch"])
    (scratch / "choices.jsonl").write_text("".join(json.dumps(row) + "\n" for row in request["choices"]))
    task = {
        "task": TASK,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(scratch / "choices.jsonl")}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{prompt}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": 0,
        "metric_list": [{"metric": "acc"}],
    }
    (scratch / f"{TASK}.yaml").write_text(json.dumps(task))  # JSON is YAML
    model = {"pretrained": request["model"], "dtype": "float32"}
    if request["adapter"]:
        model |= {"pretrained": request["base"], "peft": request["model"]}
    if request["trust_remote_code"]:
        model["trust_remote_code"] = "True"
    arguments = {
        "model": "hf",
        "model_args": ",".join(f"{name}={value}" for name, value in model.items()),
        "tasks": TASK,
        "include_path": scratch,
        "output_path": scratch / "results",
        "device": "cpu",
    }
    options = [text for name, value in arguments.items() for text in (f"--{name}", str(value))]
    subprocess.run([sys.executable, "-I", "-m", "lm_eval", "run", *options, "--log_samples"], check=True)
    (samples,) = (scratch / "results").rglob(f"samples_{TASK}_*.jsonl")
    rows = sorted(map(json.loads, samples.read_text().splitlines()), key=lambda row: row["doc_id"])
    return [[float(likelihood) for likelihood, _ in row["filtered_resps"]] for row in rows]


if __name__ == "__main__":
    request = json.loads(Path(sys.argv[1]).read_text())
    Path(request["answer"]).write_text(json.dumps(probe(request)))
