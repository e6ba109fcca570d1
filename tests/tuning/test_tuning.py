"""The search: its edits are those of a fit, it is seeded and goes on where it stopped, and it chooses as it says."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

import sea_export.capture.in_memory
from sea_export.cli import main
from sea_export.demonstrations.demonstration import Demonstration
from sea_export.edit.spectral_edit import SpectralEdit
from sea_export.errors import InputError, SeaExportError
from sea_export.evaluation.benchmark import measure, split_rows
from sea_export.evaluation.damage import load_texts
from sea_export.evaluation.metrics import mean_metric
from sea_export.evaluation.truthfulqa import TruthfulQA, load_truthfulqa
from sea_export.fitting.bank import StatisticsBank
from sea_export.fitting.fit import fit_edit
from sea_export.options import CENTERS, SITES, TARGETS, CaptureOptions, EditOptions, FitOptions
from sea_export.tuning.search import (
    SearchSpace,
    TrialResult,
    Tuner,
    _surely_worse,
    choose,
    open_study,
    pareto_front,
    search,
)
from tests.helpers.benchmark_files import write_jsonl, write_truthfulqa
from tests.helpers.messages import assert_names, naming
from tests.helpers.tiny_models import hook_count

START = FitOptions(layers="last:2", edit=EditOptions(explained_variance=0.7))


@pytest.fixture(scope="module")
def bank(
    llama: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, demonstrations: tuple[Demonstration, ...]
) -> StatisticsBank:
    return StatisticsBank(llama, tokenizer, demonstrations, START, sites=SITES, targets=TARGETS)


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory: pytest.TempPathFactory) -> TruthfulQA:
    file = write_truthfulqa(tmp_path_factory.mktemp("rows") / "questions.csv")
    return TruthfulQA(load_truthfulqa(file), "plain")


@pytest.fixture(scope="module")
def tuner(
    bank: StatisticsBank, llama: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, benchmark: TruthfulQA
) -> Tuner:
    return Tuner(bank, llama, tokenizer, benchmark, load_texts(None)[:4], metric="MC2", max_divergence=0.5)


def assert_equal_edits(one: SpectralEdit, other: SpectralEdit) -> None:
    assert one.targets == other.targets
    for target in one.targets:
        (a,), (b,) = one.layers[target], other.layers[target]
        numbers = b.numbers()
        for name, value in a.numbers().items():
            assert value == (pytest.approx(numbers[name], rel=1e-4) if isinstance(value, float) else numbers[name])
        probe = torch.randn(5, a.size, generator=torch.Generator().manual_seed(0))
        assert torch.allclose(a.apply(probe), b.apply(probe), atol=1e-4)


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("center", CENTERS)
def test_edits_from_the_bank_are_those_of_a_fit(
    site: str,
    target: str,
    center: str,
    bank: StatisticsBank,
    llama: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    demonstrations: tuple[Demonstration, ...],
) -> None:
    options = FitOptions(
        layers="signature:2" if site == "residual" else "1-2",
        target=target,
        center=center,
        capture=CaptureOptions(site=site),
        edit=EditOptions(positive_variance=0.6, negative_variance=0.8, strength=0.5, normalization="calibrated"),
    )
    expected = fit_edit(llama, tokenizer, demonstrations, options)
    found = bank.edit(options)
    assert_equal_edits(found, expected)
    assert found.provenance["options"] == expected.provenance["options"]
    assert found.provenance["demonstrations"] == expected.provenance["demonstrations"]


def test_a_trial_runs_no_capture(bank: StatisticsBank, tuner: Tuner, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise AssertionError("activations were captured again")

    monkeypatch.setattr(sea_export.capture.in_memory, "run_batches", fail)
    outcome = tuner.try_edit(0, START, whole=True)
    assert outcome.value is not None


def test_a_trial_gives_what_the_benchmark_gives(
    bank: StatisticsBank,
    tuner: Tuner,
    llama: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    benchmark: TruthfulQA,
) -> None:
    """Rows are measured in two parts, which changes nothing; and the model is left as it was."""
    hooks = hook_count(llama)
    outcome = tuner.try_edit(3, START, whole=True)
    assert hook_count(llama) == hooks
    with bank.edit(START).apply(llama):
        figure = measure(benchmark, llama, tokenizer).figure("MC2")
    assert outcome.number == 3
    assert outcome.value == pytest.approx(figure.value, abs=1e-4)
    assert outcome.score == pytest.approx(figure.value - 1, abs=1e-4)
    assert tuner.base.value == pytest.approx(measure(benchmark, llama, tokenizer).figure("MC2").value, abs=1e-4)
    assert outcome.divergence > 0


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
    monkeypatch.setattr("sea_export.tuning.search._surely_worse", lambda figure, base: True)
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
    figures = (mean_metric("x", changed, best=best), mean_metric("x", base, best=best))
    assert _surely_worse(*figures) == worse
    assert not _surely_worse(figures[1], figures[1])


def replace_budget(tuner: Tuner, budget: float) -> Tuner:
    changed = copy.copy(tuner)
    changed.max_divergence = budget
    return changed


class FakeTuner:
    """Answers at once: the more strength the better and the more divergent."""

    max_divergence = 1.2

    def __init__(self, stop_after: int | None = None) -> None:
        self.tried: list[tuple[int, FitOptions, bool]] = []
        self.stop_after = stop_after

    def try_edit(self, number: int, options: FitOptions, *, whole: bool) -> TrialResult:
        if self.stop_after is not None and len(self.tried) == self.stop_after:
            raise KeyboardInterrupt
        self.tried.append((number, options, whole))
        strength = options.edit.strength
        if strength > 1.5:
            return TrialResult(number, options, None, None, strength, "over budget")
        return TrialResult(number, options, strength / 3, strength / 3 - 1, strength, None)


SPACE = SearchSpace(4)


def run_search(tuner: FakeTuner, storage: Path | None, *, trials: int = 25, seed: int = 0) -> list[TrialResult]:
    study = open_study(storage, {"seed": seed})
    tuning: Any = tuner
    return search(study, tuning, SPACE, START, trials=trials, timeout=None, seed=seed, progress=lambda outcome: None)


def test_the_default_edit_comes_first_and_is_measured_whole() -> None:
    tuner = FakeTuner()
    run_search(tuner, None)
    _, first, whole = tuner.tried[0]
    assert whole
    assert first == replace(START, edit=replace(START.edit, positive_variance=0.7, negative_variance=0.7))
    assert not any(whole for _, _, whole in tuner.tried[1:])
    assert {options.target for _, options, _ in tuner.tried[:8]} == set(TARGETS)


def test_the_same_seed_searches_the_same(tmp_path: Path) -> None:
    one, other, third = (run_search(FakeTuner(), None, seed=seed) for seed in (1, 1, 2))
    assert one == other
    assert one[9:] != third[9:]


def test_every_second_trial_varies_the_best_so_far() -> None:
    """Two settings of it at most, and in the other trials all of them."""
    found = run_search(FakeTuner(), None, trials=40)
    starts = len(SPACE.starts(START))
    differences = []
    for index in range(starts, 40):
        best = pareto_front(found[:index], FakeTuner.max_divergence)[-1]
        differences.append(len(settings(best.options).items() - settings(found[index].options).items()))
    assert starts == 12
    assert max(differences[::2]) <= 2
    assert min(differences[1::2]) > 2


def test_no_edit_is_measured_twice() -> None:
    tuner = FakeTuner()
    found = run_search(tuner, None, trials=200)
    measured = [options for _, options, _ in tuner.tried]
    assert len(found) == 200
    assert len(measured) < 200, "no edit came up twice, so that nothing was shown"
    assert all(options not in measured[:index] for index, options in enumerate(measured))
    for outcome in found:
        assert outcome.value == (outcome.options.edit.strength / 3 if outcome.cut is None else None)


def test_the_search_gets_near_the_budget() -> None:
    """The best that the fake tuner can give is at strength 1.2, which is none of the starting points."""
    found = run_search(FakeTuner(), None, trials=40)
    best = choose(found, "best", max_divergence=FakeTuner.max_divergence, base_score=-1.0)
    assert 1.1 <= best.options.edit.strength <= 1.2


def settings(options: FitOptions) -> dict[str, object]:
    """What is searched."""
    edit = options.edit
    kind, _, count = options.layers.partition(":")
    return {
        **{"kind": kind, "count": count, "target": options.target, "center": options.center},
        **{"site": options.capture.site, "normalization": edit.normalization, "strength": edit.strength},
        **{sign: round(edit.variance(sign), 5) for sign in ("positive", "negative")},
    }


@pytest.mark.parametrize("done", [0, 3, 14])
def test_an_interrupted_search_goes_on_as_it_would_have(done: int, tmp_path: Path) -> None:
    storage = tmp_path / "study.log"
    with pytest.raises(KeyboardInterrupt):
        run_search(FakeTuner(stop_after=done), storage)
    rest = FakeTuner()
    resumed = run_search(rest, storage)
    whole = run_search(FakeTuner(), tmp_path / "other.log")
    assert len(rest.tried) == 25 - done
    assert [replace(one, number=0) for one in resumed] == [replace(one, number=0) for one in whole]
    finished = FakeTuner()
    assert run_search(finished, storage) == resumed
    assert finished.tried == []


def test_searches_with_other_settings_share_a_file(tmp_path: Path) -> None:
    run_search(FakeTuner(), tmp_path / "study.log", trials=3)
    tuner = FakeTuner()
    run_search(tuner, tmp_path / "study.log", trials=3, seed=7)
    assert len(tuner.tried) == 3


def test_no_trial_begins_after_the_timeout() -> None:
    tuner: Any = FakeTuner()
    study = open_study(None, {})
    arguments: dict[str, Any] = {"trials": 50, "seed": 0, "progress": lambda outcome: None}
    assert search(study, tuner, SPACE, START, timeout=0, **arguments) == []


def test_a_space_that_excludes_the_default_edit() -> None:
    space = SearchSpace(4, targets=("attention",), centers=("off",))
    assert not space.contains(START)
    assert space.starts(START) == []
    assert SPACE.contains(START)


def outcomes(points: Sequence[tuple[float, float]]) -> list[TrialResult]:
    """(divergence, score) of trials 0, 1, …"""
    return [
        TrialResult(number, START, score, score, divergence, None) for number, (divergence, score) in enumerate(points)
    ]


POINTS = outcomes([(0.10, -0.50), (0.02, -0.52), (0.05, -0.49), (0.30, -0.10), (0.04, -0.60), (0.19, -0.48)])
CUT = TrialResult(6, START, None, None, 0.01, "worse than the base on the first rows")


def test_the_front_holds_what_nothing_beats() -> None:
    front = pareto_front([*POINTS, CUT], max_divergence=0.2)
    assert [outcome.number for outcome in front] == [1, 2, 5]
    within = [outcome for outcome in POINTS if outcome.number != 3]
    for outcome in within:
        beaten = any(one.divergence <= outcome.divergence and one.score > outcome.score for one in within)
        assert (outcome in front) == (not beaten)


@pytest.mark.parametrize(("pick", "number"), [("best", 5), ("knee", 2), ("4", 4), ("3", 3)])
def test_picks(pick: str, number: int) -> None:
    assert choose([*POINTS, CUT], pick, max_divergence=0.2, base_score=-0.55).number == number


def test_picks_that_are_not_there() -> None:
    for pick in ("6", "12"):
        with pytest.raises(InputError, match=naming("--pick", pick)):
            choose([*POINTS, CUT], pick, max_divergence=0.2, base_score=-0.55)
    with pytest.raises(SeaExportError, match=naming("--max-kl")):
        choose(POINTS, "best", max_divergence=0.001, base_score=-0.55)


def test_the_best_of_trials_that_are_all_worse_than_the_base() -> None:
    assert choose(POINTS, "knee", max_divergence=0.2, base_score=-0.1).number == 5


# The command


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture
def demonstrations_file(demonstrations: tuple[Demonstration, ...], tmp_path: Path) -> Path:
    rows = [{"prompt": d.prompt, "positive": d.positive, "negative": d.negative} for d in demonstrations]
    return write_jsonl(tmp_path / "demonstrations.jsonl", rows)


def test_tune_bakes_what_it_chose_and_reports_on_other_rows(
    tiny_checkpoint: Path, demonstrations_file: Path, tmp_path: Path
) -> None:
    questions = write_truthfulqa(tmp_path / "questions.csv")
    output = tmp_path / "out"
    result = run(
        *("tune", tiny_checkpoint, output, "--demonstrations", demonstrations_file),
        *("--benchmark", f"truthfulqa:plain={questions}", "--max-kl", 5, "--trials", 12, "--choosing", 0.5),
        *("--storage", tmp_path / "study.log", "--plot", tmp_path / "search.png"),
    )
    assert result.exit_code == 0, result.output
    assert_names(result.output, "Pareto front", "4 reporting rows")
    assert (tmp_path / "search.png").read_bytes().startswith(b"\x89PNG")
    record = json.loads((tmp_path / "out.tune.json").read_text(encoding="utf-8"))
    assert len(record["trials"]) == 12
    (chosen,) = [trial for trial in record["trials"] if trial["number"] == record["chosen"]]
    assert chosen["divergence"] <= 5
    assert chosen["score"] == max(
        trial["score"] for trial in record["trials"] if trial["cut"] is None and trial["divergence"] <= 5
    )
    baked = json.loads((output / "sea_export.json").read_text(encoding="utf-8"))
    assert baked["edit"]["options"] == chosen["options"]
    assert baked["verification"]["problems"] == []
    assert baked["edit"]["tuning"]["rows"] == 4
    assert "among 12 that were tried on 4 rows of truthfulqa" in (output / "README.md").read_text(encoding="utf-8")
    reported = record["reports"]["reporting"]["chosen"]
    assert baked["evaluation"]["benchmarks"] == reported
    assert record["reports"]["choosing"]["chosen"][0]["figures"][1]["value"][0] == pytest.approx(
        chosen["value"], abs=1e-4
    )
    assert math.isfinite(reported[1]["figures"][0]["value"][0])
    AutoModelForCausalLM.from_pretrained(output)


def test_choosing_and_reporting_texts_are_apart() -> None:
    choosing, reporting = split_rows(load_texts(None), 0.5, 0, "texts")
    assert not set(choosing) & set(reporting)
    assert len(choosing) + len(reporting) == 40


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


def test_without_optuna_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    with pytest.raises(InputError, match=naming("pip install 'sea-export[tune]'")):
        open_study(None, {})
