"""The search: it is seeded, varies the best edit so far, and goes on where it stopped."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sea_export.errors import InputError
from sea_export.options import TARGETS, EditOptions, FitOptions
from sea_export.tuning.choosing import choose, pareto_front
from sea_export.tuning.search import search
from sea_export.tuning.search_space import SearchSpace
from sea_export.tuning.study import SearchSettings, open_study
from sea_export.tuning.trial import TrialResult
from tests.helpers.messages import naming
from tests.helpers.parameters import slow_but

START = FitOptions(layers="last:2", edit=EditOptions(explained_variance=0.7))


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
SETTINGS = SearchSettings(
    base={"name": "org/base", "revision": None, "weights": {}},
    dtype="float32",
    demonstrations="",
    benchmark="truthfulqa",
    choosing_rows="",
    texts="",
    metric="MC2",
    max_kl=1.2,
    space=SPACE,
    start=START,
    seed=0,
)


def run_search(tuner: FakeTuner, storage: Path | None, *, trials: int = 25, seed: int = 0) -> list[TrialResult]:
    study = open_study(storage, replace(SETTINGS, seed=seed))
    tuning: Any = tuner
    return search(study, tuning, SPACE, START, trials=trials, timeout=None, seed=seed, progress=lambda result: None)


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


@pytest.mark.slow
def test_no_edit_is_measured_twice() -> None:
    tuner = FakeTuner()
    found = run_search(tuner, None, trials=200)
    measured = [options for _, options, _ in tuner.tried]
    assert len(found) == 200
    assert len(measured) < 200, "no edit came up twice, so that nothing was shown"
    assert all(options not in measured[:index] for index, options in enumerate(measured))
    for result in found:
        assert result.value == (result.options.edit.strength / 3 if result.cut is None else None)


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


@pytest.mark.parametrize("done", slow_but([3], [0, 3, 14]))
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


def test_a_space_that_excludes_the_default_edit() -> None:
    space = SearchSpace(4, targets=("attention",), centers=("off",))
    assert not space.contains(START)
    assert space.starts(START) == []
    assert SPACE.contains(START)


def test_without_optuna_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    with pytest.raises(InputError, match=naming("sea-export[tune]")):
        open_study(None, SETTINGS)
