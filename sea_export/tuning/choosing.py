"""The choice among the trials of a search."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from sea_export.errors import InputError, SeaExportError
from sea_export.tuning.trial import TrialResult
from sea_export.tuning.tuning_options import PICKS

__all__ = ["choose", "pareto_front"]

logger = logging.getLogger(__name__)


def pareto_front(results: Sequence[TrialResult], *, max_divergence: float, base_score: float) -> list[TrialResult]:
    """What neither the base nor another result within the budget beats in both score and divergence.

    Args:
        results: all of them.
        max_divergence: the budget.
        base_score: the score of the base, at divergence 0.

    Returns:
        the results, by rising divergence.
    """
    within = [(_divergence(one), one) for one in results if one.cut is None and _divergence(one) <= max_divergence]
    front: list[TrialResult] = []
    for _, result in sorted(within, key=lambda pair: (pair[0], -_score(pair[1]))):
        if _score(result) > (_score(front[-1]) if front else base_score):
            front.append(result)
    return front


def choose(results: Sequence[TrialResult], pick: str, *, max_divergence: float, base_score: float) -> TrialResult:
    """One result of a search that is not worse than the base.

    Args:
        results: all of them.
        pick: `best`, the highest score within the budget; `knee`, where the front is farthest above the straight line
            from the base to the best; or the number of a trial.
        max_divergence: the budget.
        base_score: the score of the base, at divergence 0.

    Raises:
        InputError: there is no trial of that number, it was cut short, or it is worse than the base.
        SeaExportError: no trial stayed within the budget, or all that did are worse than the base.
    """
    if pick not in PICKS:
        return _numbered(results, pick, base_score)
    front = pareto_front(results, max_divergence=max_divergence, base_score=base_score)
    if not front:
        within = [one for one in results if one.cut is None and _divergence(one) <= max_divergence]
        equal = [one for one in within if _score(one) == base_score]
        if equal:
            logger.warning(
                "--trials: none of %d edits is better than the base on the choosing rows. The chosen one is as good as "
                "the base there.",
                len(results),
            )
            return min(equal, key=_divergence)
        if within:
            raise SeaExportError(
                f"--trials: all of {len(results)} edits are worse than the base on the choosing rows, so that none is "
                "chosen. Give more or other demonstrations, or raise --trials."
            )
        raise SeaExportError(
            f"--max-kl: none of {len(results)} trials was measured to its end within a KL of {max_divergence}. Raise "
            "--max-kl or --trials."
        )
    best = front[-1]
    if pick == "best":
        return best
    rise, reach = _score(best) - base_score, _divergence(best)
    return max(front, key=lambda one: (_score(one) - base_score) / rise - _divergence(one) / reach)


def _numbered(results: Sequence[TrialResult], number: str, base_score: float) -> TrialResult:
    for result in results:
        if str(result.number) == number and result.cut is None:
            if _score(result) >= base_score:
                return result
            raise InputError(f"--pick: trial {number} is worse than the base. Choose another one.")
    raise InputError(f"--pick: there is no trial {number}, or it was cut short. Choose another one.")


def _score(result: TrialResult) -> float:
    assert result.score is not None
    return result.score


def _divergence(result: TrialResult) -> float:
    assert result.divergence is not None
    return result.divergence
