"""The largest strength of an edit whose damage is within a budget.

The KL divergence grows about with the square of the strength, so that secant steps on log KL over log s converge in a
few steps. The first steps use a part of the text; the last one uses all of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from sea_export.errors import SeaExportError

__all__ = ["StrengthStep", "strength_within"]

_STEPS = 12
# The KL that is accepted, as a share of the budget.
_LOWEST, _AIM = 0.9, 0.96
# One step changes the strength by at most this factor, either way.
_LARGEST_STEP = 8.0
# Exponents of the strength that secants may give. A quadratic has 2.
_EXPONENTS = (1.0, 4.0)


@dataclass(frozen=True)
class StrengthStep:
    """One measurement of the search."""

    strength: float
    divergence: float
    """Mean KL from the base, in nats per token."""
    whole: bool
    """Whether it is of all of the text."""


def strength_within(
    budget: float, measure: Callable[[float, bool], float], start: float
) -> tuple[float, tuple[StrengthStep, ...]]:
    """The largest strength whose divergence is within a budget, to a tenth of the budget.

    Args:
        budget: the largest divergence, in nats per token, above 0.
        measure: gives the divergence at a strength; on a part of the text, or where its second argument is true on all
            of it.
        start: the first strength that is tried, above 0.

    Returns:
        The strength, and all steps of the search.

    Raises:
        SeaExportError: no strength gives a divergence near the budget.
    """
    strength, whole = start, False
    steps: list[StrengthStep] = []
    for _ in range(_STEPS):
        found = measure(strength, whole)
        steps.append(StrengthStep(strength, found, whole))
        if _LOWEST * budget <= found <= budget:
            if whole:
                return strength, tuple(steps)
            whole = True
            continue
        if math.isfinite(found) and 0.5 * budget < found < 2 * budget:
            whole = True
        strength *= _factor(steps, _AIM * budget)
    raise SeaExportError(
        f"--max-kl: no strength with a KL near {budget:g} was found in {_STEPS} steps; the last one, {strength:.3g}, "
        f"gave {steps[-1].divergence:.3g}. Give --strength."
    )


def _factor(steps: list[StrengthStep], aim: float) -> float:
    """By what to multiply the last strength, so that its divergence becomes `aim`."""
    last = steps[-1]
    if not math.isfinite(last.divergence):
        return 1 / _LARGEST_STEP
    if last.divergence <= 0:
        return _LARGEST_STEP
    exponent = 2.0
    others = [step for step in steps[:-1] if step.strength != last.strength and 0 < step.divergence < math.inf]
    if others and others[-1].divergence != last.divergence:
        other = others[-1]
        slope = math.log(last.divergence / other.divergence) / math.log(last.strength / other.strength)
        exponent = min(max(slope, _EXPONENTS[0]), _EXPONENTS[1])
    factor = (aim / last.divergence) ** (1 / exponent)
    return min(max(factor, 1 / _LARGEST_STEP), _LARGEST_STEP)
