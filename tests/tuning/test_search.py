"""The search: it is seeded, varies the best edit so far, and goes on where it stopped."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sea_export.errors import InputError
from sea_export.evaluation.metrics import mean_metric
from sea_export.options import CENTERS, METHODS, EditOptions, FitOptions
from sea_export.tuning.choosing import choose, pareto_front
from sea_export.tuning.search import search
from sea_export.tuning.search_space import Candidate, SearchSpace, kinds_of
from sea_export.tuning.study import SearchSettings, open_study
from sea_export.tuning.trial import TrialResult
from tests.helpers.messages import naming
from tests.helpers.parameters import slow_but

START = FitOptions(layers="last:2", edit=EditOptions(explained_variance=0.7))


class FakeTuner:
    """Answers at once: spectral edits of few layers that use the whole budget are best."""

    base = mean_metric("MC2", [0.0, 0.2], best=1.0)

    def __init__(self, stop_after: int | None = None) -> None:
        self.tried: list[tuple[int, Candidate, bool]] = []
        self.stop_after = stop_after

    def try_edit(self, number: int, candidate: Candidate, *, whole: bool) -> TrialResult:
        if self.stop_after is not None and len(self.tried) == self.stop_after:
            raise KeyboardInterrupt
        self.tried.append((number, candidate, whole))
        if candidate.options.target == "attention":
            return TrialResult(number, candidate, None, None, None, None, "it changes nothing")
        value = value_of(candidate)
        return TrialResult(number, candidate, 0.5, value, value - 1, candidate.budget, None)


def value_of(candidate: Candidate) -> float:
    count = int(candidate.options.layers.partition(":")[2])
    return 0.1 + candidate.budget / 3 - 0.05 * count + 0.1 * (candidate.options.method == "spectral")


SPACE = SearchSpace(4, max_kl=1.2)
SETTINGS = SearchSettings(
    base={"name": "org/base", "revision": None, "weights": {}},
    dtype="float32",
    demonstrations="",
    benchmark="truthfulqa",
    choosing_rows="",
    texts="",
    metric="MC2",
    space=SPACE,
    start=START,
    seed=0,
)


def run_search(
    tuner: FakeTuner, storage: Path | None, *, trials: int = 25, seed: int = 0, space: SearchSpace = SPACE
) -> list[TrialResult]:
    study = open_study(storage, replace(SETTINGS, seed=seed, space=space))
    tuning: Any = tuner
    return search(study, tuning, space, START, trials=trials, timeout=None, seed=seed, progress=lambda result: None)


def test_the_default_edit_comes_first_and_is_measured_whole() -> None:
    tuner = FakeTuner()
    run_search(tuner, None)
    _, first, whole = tuner.tried[0]
    assert whole
    assert first.budget == 1.2
    assert first.options == replace(START, edit=replace(START.edit, positive_variance=0.7, negative_variance=0.7))
    assert not any(whole for _, _, whole in tuner.tried[1:])


def test_every_kind_is_tried_early_with_its_defaults() -> None:
    tuner = FakeTuner()
    run_search(tuner, None, trials=len(SPACE.kinds))
    tried = [candidate.options for _, candidate, _ in tuner.tried]
    assert {(one.method, one.form) for one in tried} == {(one.method, one.form) for one in SPACE.kinds}
    assert {one.method for one in tried} == set(METHODS)
    for one in tried:
        assert one.center == FitOptions(method=one.method, form=one.form).center
        assert one.layers == START.layers


def test_methods_have_their_own_settings_only() -> None:
    """A rank without a map of low rank, or a normalization without spectra, would be refused."""
    found = [result.candidate.options for result in run_search(FakeTuner(), None, trials=60)]
    assert len({one.damping for one in found if one.method == "natural-gradient"}) > 2
    assert len({one.rank for one in found if one.form == "low-rank"}) > 1
    assert {one.damping for one in found if one.method != "natural-gradient"} == {None}
    assert {one.edit.positive_variance for one in found if one.method != "spectral"} == {None}


def test_the_same_seed_searches_the_same(tmp_path: Path) -> None:
    one, other, third = (run_search(FakeTuner(), None, seed=seed) for seed in (1, 1, 2))
    assert one == other
    assert one[len(SPACE.kinds) :] != third[len(SPACE.kinds) :]


def test_every_second_trial_varies_the_best_so_far() -> None:
    """Two settings of it at most, but for those that come with another method; and in the other trials all of them."""
    found = run_search(FakeTuner(), None, trials=40)
    starts = len(SPACE.starts(START))
    kept, others = [], []
    for index in range(starts, 40):
        best = pareto_front(found[:index], max_divergence=1.2, base_score=FakeTuner.base.score)[-1]
        if best.candidate.options.method == found[index].candidate.options.method:
            differing = settings(best.candidate).items() - settings(found[index].candidate).items()
            (kept if (index - starts) % 2 == starts % 2 else others).append(len(differing))
    assert starts == len(SPACE.kinds) == 9
    assert max(kept) <= 2
    assert min(others, default=3) > 2


@pytest.mark.slow
def test_no_edit_is_measured_twice() -> None:
    tuner = FakeTuner()
    space = replace(SPACE, kinds=kinds_of(["mean-difference"]), targets=("mlp",))
    found = run_search(tuner, None, trials=200, space=space)
    measured = [candidate for _, candidate, _ in tuner.tried]
    assert len(found) == 200
    assert len(measured) < 200, "no edit came up twice, so that nothing was shown"
    assert all(candidate not in measured[:index] for index, candidate in enumerate(measured))
    for result in found:
        assert result.value == value_of(result.candidate)


def test_the_search_finds_the_best_edit() -> None:
    found = run_search(FakeTuner(), None, trials=40)
    best = choose(found, "best", max_divergence=1.2, base_score=FakeTuner.base.score)
    assert best.value == pytest.approx(0.1 + 0.4 - 0.05 + 0.1)


def settings(candidate: Candidate) -> dict[str, object]:
    """What is searched."""
    options = candidate.options
    edit = options.edit
    layers, _, count = options.layers.partition(":")
    return {
        **{"method": options.method, "form": options.form, "rank": options.rank, "damping": options.damping},
        **{"layers": layers, "count": count, "target": options.target, "center": options.center},
        **{"site": options.capture.site, "normalization": edit.normalization, "budget": candidate.budget},
        **{sign: round(edit.variance(sign), 5) for sign in ("positive", "negative")},
    }


@pytest.mark.parametrize("done", slow_but([3], [0, 3, 14]))
def test_an_interrupted_search_goes_on_as_it_would_have(done: int, tmp_path: Path) -> None:
    storage = tmp_path / "study.log"
    with pytest.raises(KeyboardInterrupt):
        run_search(FakeTuner(stop_after=done), storage)
    rest = FakeTuner()
    resumed = run_search(rest, storage)
    uninterrupted = FakeTuner()
    whole = run_search(uninterrupted, tmp_path / "other.log")
    candidates = [[candidate for _, candidate, _ in tuner.tried] for tuner in (rest, uninterrupted)]
    assert candidates[0] == candidates[1][done:]
    assert [replace(one, number=0) for one in resumed] == [replace(one, number=0) for one in whole]
    finished = FakeTuner()
    assert run_search(finished, storage) == resumed
    assert finished.tried == []


@pytest.mark.parametrize("lost", [1, 40, 200])
def test_a_search_that_was_killed_while_it_wrote_goes_on(lost: int, tmp_path: Path) -> None:
    """What is left of its last line goes, and so does nothing else."""
    storage = tmp_path / "study.log"
    run_search(FakeTuner(), storage, trials=3)
    (tmp_path / "study.log.lock").symlink_to(storage)  # as a search that Optuna itself locked would leave it
    written = storage.read_bytes()
    storage.write_bytes(written[:-lost])
    resumed = run_search(FakeTuner(), storage, trials=5)
    assert len(resumed) == 5
    kept = written[:-lost][: written[:-lost].rfind(b"\n") + 1]
    assert storage.read_bytes().startswith(kept)
    assert run_search(FakeTuner(), storage, trials=5) == resumed
    assert {path.name for path in tmp_path.iterdir()} == {"study.log", "study.log.lock"}


NOT_STUDIES = ("my notes", "my notes\n", '{"op":0}', '{"op_code":0}\nmy notes', '{"op_code":77}\n', "[1]\n")


@pytest.mark.parametrize("content", NOT_STUDIES)
def test_a_file_that_keeps_no_studies_is_refused_and_stays(content: str, tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_text(content)
    with pytest.raises(InputError, match=naming(file)):
        run_search(FakeTuner(), file, trials=1)
    assert file.read_text() == content


WHOLE = {"strength": 0.5, "value": 0.1, "score": -0.9, "divergence": 0.2, "cut": None}


@pytest.mark.parametrize(
    "outcome",
    [
        3,
        [],
        {},
        WHOLE | {"more": 1},
        WHOLE | {"score": "high"},
        WHOLE | {"value": True},
        WHOLE | {"divergence": None},
        WHOLE | {"cut": 3},
        WHOLE | {"cut": "early", "strength": [0.5]},
    ],
    ids=str,
)
def test_a_trial_whose_result_is_none_is_refused(outcome: object, tmp_path: Path) -> None:
    storage = tmp_path / "study.log"
    run_search(FakeTuner(), storage, trials=3)
    lines = [json.loads(line) for line in storage.read_text(encoding="utf-8").splitlines()]
    for line in lines:
        if "outcome" in line.get("user_attr", {}):
            line["user_attr"]["outcome"] = outcome
    storage.write_text("".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines), encoding="utf-8")
    with pytest.raises(InputError, match="--storage: a trial in it is damaged"):
        run_search(FakeTuner(), storage, trials=4)


def test_searches_with_other_settings_share_a_file(tmp_path: Path) -> None:
    run_search(FakeTuner(), tmp_path / "study.log", trials=3)
    tuner = FakeTuner()
    run_search(tuner, tmp_path / "study.log", trials=3, seed=7)
    assert len(tuner.tried) == 3


def test_no_trial_begins_after_the_timeout() -> None:
    tuner: Any = FakeTuner()
    study = open_study(None, SETTINGS)
    arguments: dict[str, Any] = {"trials": 50, "seed": 0, "progress": lambda result: None}
    assert search(study, tuner, SPACE, START, timeout=0, **arguments) == []


@pytest.mark.parametrize(
    "space",
    [
        SearchSpace(4, 1.0, kinds_of(centers=("off",))),
        SearchSpace(4, 1.0, targets=("attention",)),
        SearchSpace(4, 1.0, sites=("residual",)),
        SearchSpace(4, 1.0, kinds_of(("gradient",))),
    ],
)
def test_a_space_that_excludes_the_default_edit(space: SearchSpace) -> None:
    assert not space.contains(START)
    assert SPACE.contains(START)
    tuner = FakeTuner()
    run_search(tuner, None, trials=3, space=space)
    assert not any(whole for _, _, whole in tuner.tried)


def test_kinds_are_those_that_were_asked_for() -> None:
    (kind,) = kinds_of(["natural-gradient"], ["low-rank"], ["affine"])
    assert (kind.method, kind.form, kind.centers) == ("natural-gradient", "low-rank", ("off",))
    centers = {kind.method: kind.centers for kind in kinds_of(forms=["bias"])}
    assert centers["mean-difference"] == centers["gradient"] == ("affine", "linear")
    assert centers["spectral"] == centers["erasure"] == CENTERS
    with pytest.raises(InputError, match=naming("mean-difference", "--center off")):
        kinds_of(["mean-difference"], centers=["off"])


def test_without_optuna_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    with pytest.raises(InputError, match=naming("sea-export[tune]")):
        open_study(None, SETTINGS)
