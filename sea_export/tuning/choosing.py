"""The choice among the trials of a search."""

from __future__ import annotations

from collections.abc import Sequence

from sea_export.errors import InputError, SeaExportError
from sea_export.tuning.trial import TrialResult
from sea_export.tuning.tuning_options import PICKS

__all__ = ["choose", "pareto_front"]


def pareto_front(results: Sequence[TrialResult], max_divergence: float) -> list[TrialResult]:
    """The results within the budget that no other result beats in both score and divergence, by rising divergence."""
    within = [result for result in results if result.cut is None and result.divergence <= max_divergence]
    front: list[TrialResult] = []
    for result in sorted(within, key=lambda one: (one.divergence, -_score(one))):
        if not front or _score(result) > _score(front[-1]):
            front.append(result)
    return front


def choose(results: Sequence[TrialResult], pick: str, *, max_divergence: float, base_score: float) -> TrialResult:
    """One result of a search.

    Args:
        results: all of them.
        pick: `best`, the highest score within the budget; `knee`, where the front is farthest above the straight line
            from the base to the best; or the number of a trial.
        max_divergence: the budget.
        base_score: the score of the base, at divergence 0.

    Raises:
        InputError: there is no trial of that number, or it was cut short.
        SeaExportError: no trial stayed within the budget.
    """
    if pick not in PICKS:
        for result in results:
            if str(result.number) == pick and result.cut is None:
                return result
        raise InputError(f"--pick: there is no trial {pick}, or it was cut short. Choose another one.")
    front = pareto_front(results, max_divergence)
    if not front:
        raise SeaExportError(
            f"--max-kl: none of {len(results)} trials stayed within a KL of {max_divergence}. Raise --max-kl or "
            "--trials."
        )
    best = front[-1]
    rise = _score(best) - base_score
    if pick == "best" or rise <= 0:
        return best
    return max(front, key=lambda one: (_score(one) - base_score) / rise - one.divergence / best.divergence)


def _score(result: TrialResult) -> float:
    assert result.score is not None
    return result.score
