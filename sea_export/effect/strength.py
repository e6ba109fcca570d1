"""The largest strength of an edit whose damage is within a budget.

The KL divergence grows about with the square of the strength, so that secant steps on log KL over log s come near in a
few steps. Where a pass over the model is dear, and several edits cost little more than one, several strengths are
measured in each step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sea_export.errors import SeaExportError

__all__ = ["StrengthStep", "first_strength", "strength_by_grids", "strength_by_secants"]

_SECANT_STEPS, _GRID_STEPS = 24, 6
# The KL that is accepted, and the one that is aimed at, as shares of the budget.
_LOWEST, _AIM = 0.85, 0.95
# On a part of the text, a KL within this factor of the budget is near enough to go on with all of it.
_NEAR = 1.5
# What float32 rounds, relatively: a smaller change of activations is none.
_ROUNDING = 2.0**-23
# One step changes the strength by at most this factor, either way.
_LARGEST_STEP = 8.0
# The exponents of the strength that a secant may give. A quadratic has 2.
_EXPONENTS = (1.0, 4.0)
# The strengths of the first grid, and of a grid around an estimate, as factors.
_FIRST_GRID, _GRID = (0.25, 0.5, 1.0, 2.0, 4.0), (0.88, 0.94, 0.98, 1.0, 1.04)


@dataclass(frozen=True)
class StrengthStep:
    """One measurement of a search."""

    strength: float
    kl: float
    """Mean KL from the base, in nats per token."""
    whole: bool
    """Whether it is of all of the text."""


def first_strength(aim: float, change: float) -> float | None:
    """The strength at which a search begins; None for an edit that changes nothing, at any strength.

    Args:
        aim: the relative change of activations that the first trial should make.
        change: the one that the edit makes at strength 1.
    """
    return aim / change if change > _ROUNDING else None


def strength_by_secants(
    budget: float, measure: Callable[[float, bool], float], start: float
) -> tuple[StrengthStep, ...]:
    """Searches the largest strength within a budget, one strength a step. The first steps are on a part of the text.

    Args:
        budget: the largest divergence, in nats per token, above 0.
        measure: gives the divergence at a strength; on a part of the text, or where its second argument is true on all
            of it.
        start: the first strength that is tried, above 0.

    Returns:
        All steps. The last one is the result: of all of the text, and from 85 % to 100 % of the budget.

    Raises:
        SeaExportError: no strength gives a divergence near the budget.
    """
    strength, whole = start, False
    steps: list[StrengthStep] = []
    for _ in range(_SECANT_STEPS):
        steps.append(StrengthStep(strength, measure(strength, whole), whole))
        found = steps[-1].kl
        if whole and _LOWEST * budget <= found <= budget:
            return tuple(steps)
        whole = whole or budget / _NEAR < found < budget * _NEAR
        strength = _next(steps, _AIM * budget)
    raise _not_found(budget, steps)


def strength_by_grids(
    budget: float, measure: Callable[[Sequence[float]], Sequence[float]], start: float
) -> tuple[StrengthStep, ...]:
    """Searches the largest strength within a budget, several strengths a step, each on all of the text.

    Args:
        budget: the largest divergence, in nats per token, above 0.
        measure: gives the divergences at some strengths.
        start: the strength around which the first ones lie, above 0.

    Returns:
        All steps. The last one is the result: from 85 % to 100 % of the budget.

    Raises:
        SeaExportError: no strength gives a divergence near the budget.
    """
    steps: list[StrengthStep] = []
    strengths = [start * factor for factor in _FIRST_GRID]
    for _ in range(_GRID_STEPS):
        steps += [StrengthStep(one, kl, True) for one, kl in zip(strengths, measure(strengths), strict=True)]
        accepted = [step for step in steps if _LOWEST * budget <= step.kl <= budget]
        if accepted:
            best = max(accepted, key=lambda step: step.strength)
            return (*(step for step in steps if step is not best), best)
        by_distance = sorted(steps, key=lambda step: _distance(step.kl, budget), reverse=True)
        strengths = _grid(steps, _next(by_distance, _AIM * budget), _AIM * budget)
    raise _not_found(budget, steps)


def _distance(kl: float, budget: float) -> float:
    return abs(math.log(kl / budget)) if 0 < kl < math.inf else math.inf


def _not_found(budget: float, steps: Sequence[StrengthStep]) -> SeaExportError:
    return SeaExportError(
        f"--max-kl: no strength with a KL near {budget:g} was found in {len(steps)} trials; the last one, "
        f"{steps[-1].strength:.3g}, gave {steps[-1].kl:.3g}. Give --strength."
    )


def _next(steps: Sequence[StrengthStep], aim: float) -> float:
    """The strength to try after the last step, so that the divergence becomes `aim`."""
    last = steps[-1]
    low, high = _bracket(steps, aim)
    if 0 < last.kl < math.inf:
        factor = (aim / last.kl) ** (1 / _exponent(steps))
        proposed = last.strength * min(max(factor, 1 / _LARGEST_STEP), _LARGEST_STEP)
        if low < proposed < high:
            return proposed
    if low == 0:
        return high / _LARGEST_STEP
    return low * _LARGEST_STEP if high == math.inf else math.sqrt(low * high)


def _grid(steps: Sequence[StrengthStep], center: float, aim: float) -> list[float]:
    """Strengths around an estimate; evenly between the nearest ones below and above, if those are near it."""
    low, high = _bracket(steps, aim)
    around = [center * factor for factor in _GRID]
    if all(low < one < high for one in around):
        return around
    if low == 0 or high == math.inf:
        return [center * factor for factor in _FIRST_GRID]
    return [low * (high / low) ** (index / 6) for index in range(1, 6)]


def _bracket(steps: Sequence[StrengthStep], aim: float) -> tuple[float, float]:
    """The largest strength below `aim` and the smallest one above it, on the text of the last step; 0 and infinity."""
    same = [step for step in steps if step.whole == steps[-1].whole]
    low = max((step.strength for step in same if step.kl < aim), default=0.0)
    return low, min((step.strength for step in same if not step.kl < aim), default=math.inf)


def _exponent(steps: Sequence[StrengthStep]) -> float:
    """The slope of log KL over log s between the last two steps on the same text, or else that of a quadratic."""
    for whole in (steps[-1].whole, False):
        measured = {step.strength: step.kl for step in steps if step.whole == whole and 0 < step.kl < math.inf}
        if len(measured) > 1:
            (s1, kl1), (s2, kl2) = list(measured.items())[-2:]
            return min(max(math.log(kl2 / kl1) / math.log(s2 / s1), _EXPONENTS[0]), _EXPONENTS[1])
    return 2.0
