"""A trial: what it measures, what it computes anew, and when it is given up."""

from __future__ import annotations

import copy

import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import sea_export.capture.in_memory
import sea_export.tuning.trial
from sea_export.demonstrations.demonstration import Demonstration
from sea_export.demonstrations.neutral_text import load_texts
from sea_export.evaluation.benchmark import measure
from sea_export.evaluation.metrics import mean_metric
from sea_export.evaluation.truthfulqa import TruthfulQA, load_truthfulqa
from sea_export.fitting.bank import StatisticsBank
from sea_export.options import SITES, TARGETS, EditOptions, FitOptions
from sea_export.tuning.trial import Tuner, surely_worse
from tests.helpers.benchmark_files import write_truthfulqa
from tests.helpers.tiny_models import hook_count

START = FitOptions(layers="last:2", edit=EditOptions(explained_variance=0.7))


@pytest.fixture(scope="module")
def bank(
    llama: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, demonstrations: tuple[Demonstration, ...]
) -> StatisticsBank:
    return StatisticsBank(llama, tokenizer, demonstrations, START, sites=SITES, targets=TARGETS)


QUESTIONS = ("Count to ten.", "Why does it rain?", "Name a river.")


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory: pytest.TempPathFactory) -> TruthfulQA:
    file = write_truthfulqa(tmp_path_factory.mktemp("rows") / "questions.csv")
    return TruthfulQA(load_truthfulqa(file), "plain")


@pytest.fixture(scope="module")
def tuner(
    bank: StatisticsBank,
    llama: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    benchmark: TruthfulQA,
    tmp_path_factory: pytest.TempPathFactory,
) -> Tuner:
    texts, scratch = load_texts(None)[:4], tmp_path_factory.mktemp("scratch")
    return Tuner(bank, llama, tokenizer, benchmark, texts, QUESTIONS, metric="MC2", max_divergence=0.5, scratch=scratch)


def test_a_trial_runs_no_capture(bank: StatisticsBank, tuner: Tuner, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise AssertionError("activations were captured again")

    monkeypatch.setattr(sea_export.capture.in_memory, "run_batches", fail)
    result = tuner.try_edit(0, START, whole=True)
    assert result.value is not None


def test_a_trial_gives_what_the_benchmark_gives(
    bank: StatisticsBank,
    tuner: Tuner,
    llama: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    benchmark: TruthfulQA,
) -> None:
    """Rows are measured in two parts, which changes nothing; and the model is left as it was."""
    hooks = hook_count(llama)
    result = tuner.try_edit(3, START, whole=True)
    assert hook_count(llama) == hooks
    with bank.edit(START).apply(llama):
        metric = measure(benchmark, llama, tokenizer).metric("MC2")
    assert result.number == 3
    assert result.value == pytest.approx(metric.value, abs=1e-4)
    assert result.score == pytest.approx(metric.value - 1, abs=1e-4)
    assert tuner.base.value == pytest.approx(measure(benchmark, llama, tokenizer).metric("MC2").value, abs=1e-4)
    assert result.divergence > 0


def test_hopeless_trials_are_cut_short(bank: StatisticsBank, tuner: Tuner, monkeypatch: pytest.MonkeyPatch) -> None:
    tight = replace_budget(tuner, 1e-6)
    cut = tight.try_edit(0, START)
    assert (cut.cut, cut.value, cut.score) == ("over budget on the first texts", None, None)
    assert cut.divergence > 1e-6
    whole = tight.try_edit(0, START, whole=True)
    assert whole.cut is None
    assert whole.value is not None

    wide = replace_budget(tuner, 100.0)
    assert wide.try_edit(0, START).cut is None
    monkeypatch.setattr(sea_export.tuning.trial, "surely_worse", lambda metric, base: True)
    assert wide.try_edit(0, START).cut == "worse than the base on the first rows"


@pytest.mark.parametrize(
    ("count", "shift", "best", "worse"),
    [
        (40, -0.5, 1.0, True),
        (40, 0.5, 1.0, False),
        (40, 0.5, 0.0, True),
        (40, -0.5, 0.0, False),
        (10, -0.5, 1.0, False),
    ],
)
def test_worse_is_on_the_wrong_side_of_the_base(count: int, shift: float, best: float, worse: bool) -> None:
    """Whether up or down is worse depends on the best value; few rows never suffice."""
    base = [0.5 + 0.01 * (index % 7) for index in range(count)]
    changed = [value + shift + 0.02 * (index % 3) for index, value in enumerate(base)]
    metrics = (mean_metric("x", changed, best=best), mean_metric("x", base, best=best))
    assert surely_worse(*metrics) == worse
    assert not surely_worse(metrics[1], metrics[1])


def replace_budget(tuner: Tuner, budget: float) -> Tuner:
    changed = copy.copy(tuner)
    changed.max_divergence = budget
    return changed
