"""Tasks of lm-evaluation-harness, with a small stand-in for it: rows are paired, and only means are taken."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from sea_export.cli import main
from sea_export.errors import InputError, SeaExportError
from sea_export.evaluation.harness import Harness, harness_measurements
from sea_export.evaluation.report import make_reports
from tests.helpers.messages import assert_names, naming

CORRECT = {"easy": [1.0, 0.0, 1.0, 1.0], "hard": [0.0, 0.0, 1.0, 0.0]}


def library(correct: dict[str, list[float]], calls: list[dict[str, Any]]) -> Any:
    """What `lm_eval` gives for tasks whose rows are correct or not, in the form of its version 0.4.13."""

    def simple_evaluate(**given: Any) -> dict[str, Any]:
        calls.append(given)
        chosen = {task: correct[task][: given["limit"]] for task in given["tasks"]}
        samples = {
            task: [
                {"doc_id": row, "filter": "none", "acc": value, "bleu": ("reference", "answer")}
                for row, value in reversed(list(enumerate(values)))
            ]
            for task, values in chosen.items()
        }
        figures = {
            task: {
                "alias": task,
                "acc,none": sum(values) / len(values),
                "acc_stderr,none": "N/A",
                "bleu,none": 31.5,
            }
            for task, values in chosen.items()
        }
        return {"results": figures, "samples": samples, "higher_is_better": {task: {"acc": True} for task in chosen}}

    class TaskManager:
        def match_tasks(self, names: list[str]) -> list[str]:
            return [name for name in names if name in correct]

    def wrapped(**given: Any) -> dict[str, Any]:
        return given

    return SimpleNamespace(
        simple_evaluate=simple_evaluate,
        tasks=SimpleNamespace(TaskManager=TaskManager),
        models=SimpleNamespace(huggingface=SimpleNamespace(HFLM=wrapped)),
    )


def test_tasks_are_measured_row_by_row(
    llama: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    calls: list[dict[str, Any]] = []
    harness = Harness.load("easy, hard", None, 3, library(CORRECT, calls))
    easy, hard = harness.measure(llama, tokenizer)
    assert calls[0]["model"]["pretrained"] is llama
    assert calls[0]["model"]["tokenizer"] is tokenizer
    assert calls[0]["log_samples"] is True
    assert calls[0]["fewshot_random_seed"] == 3
    assert (easy.benchmark, easy.count) == ("lm-eval easy", 4)
    (metric,) = easy.metrics
    assert (metric.name, metric.unit, metric.best, metric.value) == ("acc", "%", 1.0, 0.75)
    assert metric.rows[:, 0].tolist() == CORRECT["easy"]
    assert hard.metrics[0].value == 0.25
    assert_names(caplog.text, "easy", "bleu")
    (limited,) = Harness.load("easy", 2, 0, library(CORRECT, calls)).measure(llama, tokenizer)
    assert limited.count == 2


def test_differences_are_paired_by_row(llama: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    rows = [float(row % 2) for row in range(40)]
    base, own = (
        Harness.load("easy", None, 0, library({"easy": values}, [])).measure(llama, tokenizer)
        for values in (rows, [1.0, *rows[1:]])
    )
    (metric,) = make_reports(own, base)[0].metrics
    assert metric.difference is not None
    assert metric.difference.mean == pytest.approx(1 / 40)
    assert metric.difference.high < 0.1  # about 0.2 if the rows were not paired


def test_filters_are_metrics_of_their_own() -> None:
    results = {
        "results": {"sums": {"exact_match,strict": 0.5, "exact_match,flexible": 1.0}},
        "samples": {
            "sums": [
                {"doc_id": row, "filter": name, "exact_match": value}
                for name, values in (("strict", (0.0, 1.0)), ("flexible", (1.0, 1.0)))
                for row, value in enumerate(values)
            ]
        },
    }
    (measured,) = harness_measurements(results)
    assert measured.count == 2
    assert {metric.name: metric.value for metric in measured.metrics} == {
        "exact_match, strict": 0.5,
        "exact_match, flexible": 1.0,
    }


def test_a_task_without_means_is_named() -> None:
    results = {
        "results": {"text": {"word_perplexity,none": 12.5}},
        "samples": {"text": [{"doc_id": 0, "filter": "none", "word_perplexity": (-3.0, 4)}]},
    }
    with pytest.raises(SeaExportError, match=naming("text")):
        harness_measurements(results)


def test_a_task_that_fails_is_told(llama: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    broken = library(CORRECT, [])

    def simple_evaluate(**given: Any) -> None:
        raise KeyError("gold")

    broken.simple_evaluate = simple_evaluate
    with pytest.raises(SeaExportError, match=naming("--lm-eval", "KeyError")):
        Harness.load("easy", None, 0, broken).measure(llama, tokenizer)


def test_unknown_tasks_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=naming("--lm-eval", "easier")):
        Harness.load("easy,easier", None, 0, library(CORRECT, []))
    with pytest.raises(InputError, match=naming("--lm-eval")):
        Harness.load(" , ", None, 0, library(CORRECT, []))
    (tmp_path / "own.yaml").write_text("task: own", encoding="utf-8")
    assert Harness.load(str(tmp_path / "own.yaml"), None, 0, library(CORRECT, [])).tasks


def test_a_missing_library_is_told_at_once(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    result = CliRunner().invoke(main, ["evaluate", str(tiny_checkpoint), "--lm-eval", "arc_easy"])
    assert result.exit_code == 2
    assert_names(result.stderr, "--lm-eval", "sea-export[lm-eval]")
