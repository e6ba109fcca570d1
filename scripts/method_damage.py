"""The strength at which the damage of an edit is a budget, for `benchmark_methods`."""

from __future__ import annotations

from collections.abc import Callable

from sea_export.edit.spectral_edit import SpectralEdit
from sea_export.effect.strength import strength_by_secants
from sea_export.errors import SeaExportError
from sea_export.evaluation.divergence import Divergence, RepeatedDivergence

# The share of the budget that is close enough, and what is aimed at.
_LOWEST, _AIM = 0.95, 0.975
_REFINEMENTS = 5


def solve(
    budget: float,
    edit_at: Callable[[float], SpectralEdit],
    part: RepeatedDivergence,
    whole: RepeatedDivergence,
    start: float,
) -> tuple[float, Divergence, int]:
    """The strength at which the larger divergence is a budget, to 5 % of it.

    Args:
        budget: in nats per token.
        edit_at: makes the edit of a strength.
        part: measures on a part of the text.
        whole: measures on all of it.
        start: the first strength that is tried.

    Returns:
        The strength, the divergence at it, and the number of steps.

    Raises:
        SeaExportError: there is no such strength.
    """
    found: list[Divergence] = []

    def divergence(strength: float, on_whole: bool) -> float:
        found.append((whole if on_whole else part).of(edit_at(strength)))
        return found[-1].largest.value

    strength = strength_by_secants(budget, divergence, start)[-1].strength
    for _ in range(_REFINEMENTS):
        largest = found[-1].largest.value
        if _LOWEST * budget <= largest <= budget:
            return strength, found[-1], len(found)
        strength *= (_AIM * budget / largest) ** 0.5
        divergence(strength, True)
    raise SeaExportError(f"KL: no strength with a KL within 5 % of {budget:g} was found. Give another --kl.")


def first_strength(edit: SpectralEdit, budget: float) -> float:
    """A strength to begin with: the largest change of any layer is about the root of the budget.

    Args:
        edit: the edit at strength 1.
        budget: in nats per token.
    """
    return float(budget**0.5 / max(edit.relative_change, 1e-6))
