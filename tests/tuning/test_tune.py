"""`tune` from end to end: what it bakes and reports, and what it refuses."""

from __future__ import annotations

import json
import math
from pathlib import Path

import optuna
import pytest
from click.testing import CliRunner, Result
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from transformers import AutoModelForCausalLM

from sea_export.cli import main
from sea_export.demonstrations.demonstration import Demonstration
from sea_export.demonstrations.neutral_text import load_texts
from sea_export.errors import InputError
from sea_export.evaluation.benchmark import split_rows
from sea_export.options import METHODS
from sea_export.tuning.tuning_options import TuneOptions
from sea_export.tuning.tuning_rows import TuningRows
from tests.helpers.benchmark_files import write_jsonl, write_truthfulqa
from tests.helpers.messages import assert_names


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture
def demonstrations_file(demonstrations: tuple[Demonstration, ...], tmp_path: Path) -> Path:
    rows = [{"prompt": d.prompt, "positive": d.positive, "negative": d.negative} for d in demonstrations]
    return write_jsonl(tmp_path / "demonstrations.jsonl", rows)


@pytest.mark.slow
def test_tune_bakes_what_it_chose_and_reports_on_other_rows(
    tiny_checkpoint: Path, demonstrations_file: Path, tmp_path: Path
) -> None:
    questions = write_truthfulqa(tmp_path / "questions.csv")
    output = tmp_path / "out"
    result = run(
        *("tune", tiny_checkpoint, output, "--demonstrations", demonstrations_file),
        *("--benchmark", f"truthfulqa:plain={questions}", "--max-kl", 0.1, "--trials", 12, "--choosing", 0.5),
        *("--storage", tmp_path / "study.log", "--plot", tmp_path / "search.png", "--progress", "json"),
    )
    assert result.exit_code == 0, result.output
    assert_names(result.output, "Pareto front", "4 reporting rows")
    told = [json.loads(line) for line in result.stderr.splitlines() if line.startswith("{")]
    read = [(one["done"], one["total"]) for one in told if one["stage"] == "Reading demonstrations"]
    fitted = [(one["done"], one["total"]) for one in told if one["stage"] == "Fitting"]
    assert read[-1][0] == read[-1][1], "what follows does not belong to the reading"
    assert fitted == [(0, 1), (1, 1)]
    assert (tmp_path / "search.png").read_bytes().startswith(b"\x89PNG")
    record = json.loads((tmp_path / "out.tune.json").read_text(encoding="utf-8"))
    assert len(record["trials"]) == 12
    (chosen,) = [trial for trial in record["trials"] if trial["number"] == record["chosen"]]
    assert chosen["divergence"] <= chosen["budget"] <= 0.1
    assert chosen["score"] == max(trial["score"] for trial in record["trials"] if trial["cut"] is None)
    assert chosen["value"] > record["base_value"]
    assert {trial["options"]["method"] for trial in record["trials"]} == set(METHODS)
    baked = json.loads((output / "sea_export.json").read_text(encoding="utf-8"))
    assert baked["edit"]["options"] == chosen["options"]
    assert baked["verification"]["problems"] == []
    assert baked["edit"]["tuning"]["rows"] == 4
    assert "among 12 that were tried on 4 rows of truthfulqa" in (output / "README.md").read_text(encoding="utf-8")
    reported = record["reports"]["reporting"]["chosen"]
    assert baked["evaluation"]["benchmarks"] == [{**one, "sampled": one["benchmark"] != "damage"} for one in reported]
    assert record["reports"]["choosing"]["chosen"][0]["figures"][1]["value"][0] == pytest.approx(
        chosen["value"], abs=1e-4
    )
    assert math.isfinite(reported[1]["figures"][0]["value"][0])
    AutoModelForCausalLM.from_pretrained(output)


def test_too_few_held_out_demonstrations_are_refused() -> None:
    with pytest.raises(InputError, match="--held-out"):
        TuningRows.load(TuneOptions(), ())


@pytest.mark.slow
def test_without_a_benchmark_held_out_demonstrations_are_measured(tiny_checkpoint: Path, tmp_path: Path) -> None:
    rows = [
        {"prompt": f"Is number {index} wet?", "positive": f"Yes, {index} is.", "negative": f"No, {index} is not."}
        for index in range(80)
    ]
    file, output = write_jsonl(tmp_path / "rows.jsonl", rows), tmp_path / "out"
    result = run(
        *("tune", tiny_checkpoint, output, "--demonstrations", file, "--max-kl", 0.1, "--trials", 6),
        *("--held-out", 0.5, "--choosing", 0.5, "--method", "gradient", "--method", "mean-difference"),
    )
    assert result.exit_code == 0, result.output
    baked = json.loads((output / "sea_export.json").read_text(encoding="utf-8"))
    assert baked["edit"]["demonstrations"]["count"] == 40
    assert baked["edit"]["demonstrations"]["origin"]["held_out"] == 0.5
    assert baked["edit"]["tuning"]["benchmark"] == "held-out demonstrations"
    assert baked["edit"]["tuning"]["metric"] == "mean margin per token"
    assert baked["edit"]["tuning"]["rows"] == 20
    record = json.loads((tmp_path / "out.tune.json").read_text(encoding="utf-8"))
    scores = [trial["score"] for trial in record["trials"] if trial["cut"] is None]
    (chosen,) = [trial for trial in record["trials"] if trial["number"] == record["chosen"]]
    assert chosen["score"] == chosen["value"] == max(scores) > record["base_value"]
    assert baked["edit"]["options"]["method"] == "gradient", "on demonstrations of one kind it is the best direction"
    assert "default" not in record["reports"]["reporting"]


@pytest.mark.slow
def test_where_every_edit_is_worse_than_the_base_nothing_is_baked(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """The sides of the demonstrations that are fitted on are exchanged, so that edits make the others less likely."""
    rows = [
        {"prompt": f"Is number {index} wet?", "positive": f"Yes, {index} is.", "negative": f"No, {index} is not."}
        for index in range(40)
    ]
    turned = [{**row, "positive": row["negative"], "negative": row["positive"], "kind": "turned"} for row in rows[:24]]
    kinds = [*turned, *({**row, "kind": "plain"} for row in rows[24:])]
    file, output = write_jsonl(tmp_path / "rows.jsonl", kinds), tmp_path / "out"
    search = (
        *("tune", tiny_checkpoint, output, "--demonstrations", file, "--max-kl", 0.1, "--trials", 2),
        *("--held-out", 0.4, "--choosing", 0.5, "--method", "gradient", "--form", "bias"),
    )
    result = run(*search)
    assert result.exit_code == 1, result.output
    assert_names(result.stderr, "worse than the base")
    assert not output.exists()
    assert_names(result.stdout, tmp_path / "out.tune.journal", "Trial 1")
    again = run(*search)
    assert again.exit_code == 1, again.output
    kept = JournalStorage(JournalFileBackend(str(tmp_path / "out.tune.journal")))
    (study,) = optuna.get_all_study_summaries(kept)
    assert study.n_trials == 2, "the same search goes on from the trials that are kept beside the output"


def test_choosing_and_reporting_texts_are_apart() -> None:
    choosing, reporting = split_rows(load_texts(None), 0.5, 0, "texts")
    assert not set(choosing) & set(reporting)
    assert len(choosing) + len(reporting) == len(load_texts(None))


@pytest.mark.parametrize(
    ("options", "fact"),
    [
        (["--pick", "first"], "--pick"),
        (["--max-kl", "0"], "--max-kl"),
        (["--choosing", "1"], "--choosing"),
        (["--plot", "search.txt"], ".png, .pdf, .svg"),
        (["--storage", "no/where.log"], "no/where.log"),
        (["--metric", "MC9"], "MC9"),
        (["--choosing", "0.05"], "rows"),
        (["--method", "mean-difference", "--center", "off"], "--center off"),
        (["--method", "erasure", "--form", "linear"], "--form"),
    ],
)
def test_bad_options(
    options: list[str], fact: str, tiny_checkpoint: Path, demonstrations_file: Path, tmp_path: Path
) -> None:
    questions = write_truthfulqa(tmp_path / "questions.csv")
    result = run(
        *("tune", tiny_checkpoint, tmp_path / "out", "--demonstrations", demonstrations_file),
        *("--benchmark", f"truthfulqa={questions}", *options),
    )
    assert result.exit_code == 2, result.output
    assert_names(result.stderr, fact)
    assert not (tmp_path / "out").exists()
