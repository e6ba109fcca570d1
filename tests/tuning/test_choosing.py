"""The choice among trials: the Pareto front, and the picks."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from sea_export.errors import InputError, SeaExportError
from sea_export.options import EditOptions, FitOptions
from sea_export.tuning.choosing import choose, pareto_front
from sea_export.tuning.search_space import Candidate
from sea_export.tuning.trial import TrialResult
from tests.helpers.messages import naming

START = Candidate(FitOptions(layers="last:2", edit=EditOptions(explained_variance=0.7)), 0.2)


def results(points: Sequence[tuple[float, float]]) -> list[TrialResult]:
    """(divergence, score) of trials 0, 1, …"""
    return [
        TrialResult(number, START, 1.0, score, score, divergence, None)
        for number, (divergence, score) in enumerate(points)
    ]


POINTS = results([(0.10, -0.50), (0.02, -0.52), (0.05, -0.49), (0.30, -0.10), (0.04, -0.60), (0.19, -0.48)])
CUT = TrialResult(6, START, 1.0, None, None, 0.01, "worse than the base on the first rows")
FAILED = TrialResult(7, START, None, None, None, None, "it changes nothing")


def test_the_front_holds_what_nothing_beats() -> None:
    front = pareto_front([*POINTS, CUT, FAILED], max_divergence=0.2, base_score=-1)
    assert [result.number for result in front] == [1, 2, 5]
    within = [result for result in POINTS if result.number != 3]
    for result in within:
        beaten = any(one.divergence <= result.divergence and one.score > result.score for one in within)
        assert (result in front) == (not beaten)


@pytest.mark.parametrize(("base", "numbers"), [(-0.55, [1, 2, 5]), (-0.52, [2, 5]), (-0.485, [5]), (-0.48, [])])
def test_the_base_beats_what_is_not_better(base: float, numbers: list[int]) -> None:
    """It costs nothing: an edit that is only as good, or worse, is on no front."""
    assert [one.number for one in pareto_front(POINTS, max_divergence=0.2, base_score=base)] == numbers


@pytest.mark.parametrize(("pick", "number"), [("best", 5), ("knee", 2), ("2", 2), ("3", 3)])
def test_picks(pick: str, number: int) -> None:
    assert choose([*POINTS, CUT], pick, max_divergence=0.2, base_score=-0.55).number == number


def test_picks_that_are_not_there() -> None:
    for pick in ("6", "7", "12"):
        with pytest.raises(InputError, match=naming("--pick", pick)):
            choose([*POINTS, CUT, FAILED], pick, max_divergence=0.2, base_score=-0.55)
    with pytest.raises(SeaExportError, match=naming("--max-kl")):
        choose([*POINTS, CUT, FAILED], "best", max_divergence=0.001, base_score=-0.55)


@pytest.mark.parametrize("pick", ["best", "knee", "5"])
def test_nothing_is_chosen_that_is_worse_than_the_base(pick: str) -> None:
    error = InputError if pick == "5" else SeaExportError
    with pytest.raises(error, match="worse than the base"):
        choose(POINTS, pick, max_divergence=0.2, base_score=-0.1)


@pytest.mark.parametrize("pick", ["best", "knee"])
def test_of_equals_of_the_base_the_one_of_least_damage_is_chosen_with_a_warning(
    pick: str, caplog: pytest.LogCaptureFixture
) -> None:
    equal = results([(0.10, -0.48), (0.05, -0.48), (0.02, -0.60), (0.30, -0.48)])
    assert choose(equal, pick, max_divergence=0.2, base_score=-0.48).number == 1
    assert "none of 4 edits is better than the base" in caplog.text
