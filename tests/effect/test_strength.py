"""The search for the strength within a budget, on functions whose answer is known."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pytest

from sea_export.effect.strength import first_strength, strength_by_grids, strength_by_secants
from sea_export.errors import SeaExportError

CURVES: dict[str, Callable[[float], float]] = {
    "quadratic": lambda strength: 0.3 * strength**2,
    "linear": lambda strength: 0.02 * strength,
    "cubic": lambda strength: 5 * strength**3,
    "tiny": lambda strength: 1e-9 * strength**2,
    "huge": lambda strength: 1e9 * strength**2,
    "saturating": lambda strength: 4 * (1 - math.exp(-(strength**2))),
    "overflowing": lambda strength: math.inf if strength > 0.5 else 0.9 * strength**2,
    "flat at first": lambda strength: max(0.0, strength - 3) ** 2,
}


@pytest.mark.parametrize("curve", CURVES)
@pytest.mark.parametrize("budget", [0.03, 0.1])
def test_secants_find_the_largest_strength_within_the_budget(curve: str, budget: float) -> None:
    calls = []

    def measure(strength: float, whole: bool) -> float:
        calls.append(whole)
        return CURVES[curve](strength) * (1.0 if whole else 0.8)  # a part of the text is not like all of it

    steps = strength_by_secants(budget, measure, 1.0)
    last = steps[-1]
    assert last.whole
    assert 0.85 * budget <= last.kl <= budget
    assert last.kl == CURVES[curve](last.strength)
    assert [step.whole for step in steps] == calls
    assert not calls[0], "the first step is cheap"


@pytest.mark.parametrize("curve", CURVES)
def test_grids_find_it_in_few_passes(curve: str) -> None:
    passes = []

    def measure(strengths: Sequence[float]) -> list[float]:
        passes.append(len(strengths))
        return [CURVES[curve](one) for one in strengths]

    steps = strength_by_grids(0.1, measure, 1.0)
    last = steps[-1]
    assert 0.085 <= last.kl <= 0.1
    assert last.strength == max(step.strength for step in steps if 0.085 <= step.kl <= 0.1)
    assert len(steps) == sum(passes)


def test_secants_of_a_quadratic_take_few_steps() -> None:
    assert len(strength_by_secants(0.1, lambda strength, whole: 0.3 * strength**2, 1.0)) <= 4


@pytest.mark.parametrize("value", [0.0, math.nan, math.inf, 5.0])
def test_a_curve_that_never_comes_near_is_an_error(value: float) -> None:
    with pytest.raises(SeaExportError, match="--max-kl"):
        strength_by_secants(0.1, lambda strength, whole: value, 1.0)
    with pytest.raises(SeaExportError, match="--max-kl"):
        strength_by_grids(0.1, lambda strengths: [value] * len(strengths), 1.0)


def test_an_edit_that_changes_only_what_is_rounded_has_no_strength() -> None:
    assert first_strength(0.1, 0.5) == 0.2
    assert first_strength(0.1, 1e-5) == pytest.approx(1e4)
    assert first_strength(0.1, 5e-16) is None
    assert first_strength(0.1, 0.0) is None
