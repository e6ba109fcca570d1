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

__all__ = ["StrengthStep", "strength_by_grids", "strength_by_secants"]

_SECANT_STEPS, _GRID_STEPS = 16, 6
# The KL that is accepted, and the one that is aimed at, as shares of the budget.
_LOWEST, _AIM = 0.85, 0.95
# On a part of the text, a KL within this factor of the budget is near enough to go on with all of it.
_NEAR = 1.5
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
        strength *= _factor(steps, _AIM * budget)
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
    center, grid = start, _FIRST_GRID
    for _ in range(_GRID_STEPS):
        strengths = [center * factor for factor in grid]
        steps += [StrengthStep(one, kl, True) for one, kl in zip(strengths, measure(strengths), strict=True)]
        accepted = [step for step in steps if _LOWEST * budget <= step.kl <= budget]
        if accepted:
            best = max(accepted, key=lambda step: step.strength)
            return (*(step for step in steps if step is not best), best)
        nearest = min(steps, key=lambda step: _distance(step.kl, budget))
        around = sorted((step for step in steps if step is not nearest), key=lambda step: _distance(step.kl, budget))
        factor = _factor([*reversed(around), nearest], _AIM * budget)
        center = nearest.strength * factor
        grid = _GRID if 1 / _LARGEST_STEP < factor < _LARGEST_STEP else _FIRST_GRID
    raise _not_found(budget, steps)


def _distance(kl: float, budget: float) -> float:
    return abs(math.log(kl / budget)) if 0 < kl < math.inf else math.inf


def _not_found(budget: float, steps: Sequence[StrengthStep]) -> SeaExportError:
    return SeaExportError(
        f"--max-kl: no strength with a KL near {budget:g} was found in {len(steps)} trials; the last one, "
        f"{steps[-1].strength:.3g}, gave {steps[-1].kl:.3g}. Give --strength."
    )


def _factor(steps: Sequence[StrengthStep], aim: float) -> float:
    """By what to multiply the last strength, so that its divergence becomes `aim`."""
    last = steps[-1]
    if not math.isfinite(last.kl):
        return 1 / _LARGEST_STEP
    if last.kl <= 0:
        return _LARGEST_STEP
    factor = (aim / last.kl) ** (1 / _exponent(steps))
    return min(max(factor, 1 / _LARGEST_STEP), _LARGEST_STEP)


def _exponent(steps: Sequence[StrengthStep]) -> float:
    """The slope of log KL over log s between the last two steps on the same text, or else that of a quadratic."""
    for whole in (steps[-1].whole, False):
        measured = {step.strength: step.kl for step in steps if step.whole == whole and 0 < step.kl < math.inf}
        if len(measured) > 1:
            (s1, kl1), (s2, kl2) = list(measured.items())[-2:]
            return min(max(math.log(kl2 / kl1) / math.log(s2 / s1), _EXPONENTS[0]), _EXPONENTS[1])
    return 2.0
