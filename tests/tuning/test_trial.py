"""A trial: what it measures, what it computes anew, and when it is given up."""

from __future__ import annotations

import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import sea_export.capture.in_memory
import sea_export.fitting.bank
import sea_export.tuning.trial
from sea_export.demonstrations.demonstration import Demonstration
from sea_export.demonstrations.neutral_text import load_texts
from sea_export.edit.spectral_edit import SpectralEdit
from sea_export.errors import InputError
from sea_export.evaluation.benchmark import measure
from sea_export.evaluation.damage import measure_divergence, predict_texts
from sea_export.evaluation.metrics import mean_metric
from sea_export.evaluation.truthfulqa import TruthfulQA, load_truthfulqa
from sea_export.fitting.bank import StatisticsBank
from sea_export.model.architecture import decoder_layers
from sea_export.options import SITES, TARGETS, EditOptions, FitOptions
from sea_export.tuning.search_space import Candidate
from sea_export.tuning.trial import Tuner, surely_worse
from tests.helpers.benchmark_files import write_truthfulqa
from tests.helpers.tiny_models import hook_count

START = FitOptions(layers="last:2", edit=EditOptions(explained_variance=0.7))
CANDIDATE = Candidate(START, 0.05)
# One of every method, and the gradient methods with maps too. Their lowest layers differ.
OPTIONS = {
    "spectral": START,
    "spectral, first layers": FitOptions(layers="first:2", target="both", center="affine"),
    "gradient": FitOptions(method="gradient", layers="last:1"),
    "natural map": FitOptions(method="natural-gradient", form="low-rank", rank=4, damping=3.0, layers="last:3"),
    "mean difference": FitOptions(method="mean-difference", layers="last:2", center="linear"),
    "erasure": FitOptions(method="erasure", layers="signature:1", target="attention"),
}


@pytest.fixture(scope="module")
def bank(
    llama: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, demonstrations: tuple[Demonstration, ...]
) -> StatisticsBank:
    gradients = FitOptions(method="natural-gradient", form="linear")
    return StatisticsBank(llama, tokenizer, demonstrations, START, sites=SITES, targets=TARGETS, gradients=gradients)


TEXTS = load_texts(None)[:4]
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
    scratch = tmp_path_factory.mktemp("scratch")
    return Tuner(bank, llama, tokenizer, benchmark, TEXTS, QUESTIONS, metric="MC2", scratch=scratch)


def test_a_trial_runs_no_capture(tuner: Tuner, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise AssertionError("activations were captured again")

    monkeypatch.setattr(sea_export.capture.in_memory, "run_batches", fail)
    monkeypatch.setattr(sea_export.fitting.bank, "margin_statistics", fail)
    assert tuner.try_edit(0, CANDIDATE, whole=True).value is not None


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_a_trial_gives_what_whole_passes_give(
    options: FitOptions,
    bank: StatisticsBank,
    tuner: Tuner,
    llama: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    benchmark: TruthfulQA,
) -> None:
    """Neither the layers that are left out nor the parts of the rows change a figure; and the model is as it was."""
    hooks = hook_count(llama)
    result = tuner.try_edit(3, Candidate(options, 0.05), whole=True)
    assert hook_count(llama) == hooks
    assert not any("forward" in layer.__dict__ for layer in decoder_layers(llama)[1])
    reference = predict_texts(llama, tokenizer, TEXTS, QUESTIONS)
    with bank.fit(result.options).edit().apply(llama):
        metric = measure(benchmark, llama, tokenizer).metric("MC2")
        divergence = measure_divergence(llama, reference).largest.value
    assert (result.number, result.cut) == (3, None)
    assert result.value == pytest.approx(metric.value, abs=1e-5)
    assert result.score == pytest.approx(metric.value - 1, abs=1e-5)
    assert tuner.base.value == pytest.approx(measure(benchmark, llama, tokenizer).metric("MC2").value, abs=1e-5)
    assert result.divergence == pytest.approx(divergence, rel=1e-3)
    assert 0.85 * 0.05 <= divergence <= 0.05 * 1.001, "the strength uses the budget"


def test_the_budget_decides_the_strength(tuner: Tuner) -> None:
    strengths = [tuner.try_edit(0, Candidate(START, budget)).strength for budget in (0.01, 0.04)]
    assert strengths[1] > 1.5 * strengths[0] > 0


def test_hopeless_trials_are_given_up(tuner: Tuner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sea_export.tuning.trial, "surely_worse", lambda metric, base: True)
    cut = tuner.try_edit(0, CANDIDATE)
    assert (cut.cut, cut.value, cut.score) == ("worse than the base on the first rows", None, None)
    assert cut.divergence <= CANDIDATE.budget
    assert tuner.try_edit(0, CANDIDATE, whole=True).cut is None


@pytest.mark.parametrize("failing", ["fit", "budget", "nothing"])
def test_an_edit_that_cannot_be_made_is_a_trial_that_is_cut_short(
    failing: str, tuner: Tuner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of many settings that do not work does not end a search."""
    if failing == "fit":

        def refuse(*arguments: object) -> SpectralEdit:
            raise InputError("layer 3, mlp: it has nothing to erase. Choose others.")

        monkeypatch.setattr("sea_export.fitting.fit.edit_from_statistics", refuse)
    elif failing == "budget":
        monkeypatch.setattr("sea_export.evaluation.divergence.compared", lambda base, edited: (1e9, 0.0))
    else:
        monkeypatch.setattr(SpectralEdit, "relative_change", 0.0)
    result = tuner.try_edit(2, CANDIDATE)
    assert (result.strength, result.value, result.divergence) == (None, None, None)
    assert {"fit": "nothing to erase", "budget": "no strength", "nothing": "changes nothing"}[failing] in result.cut


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
