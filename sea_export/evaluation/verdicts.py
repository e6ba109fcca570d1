"""Which values of a metric are better, and whether a model is better than its base. Nothing here imports torch."""

from __future__ import annotations

import math
from collections.abc import Sequence

__all__ = ["aim_of", "verdict_of"]

_NEUTRAL_UNIT = "tokens"
# The usual level: of twenty metrics of two models that are alike, about one seems to differ.
_SIGNIFICANT = 0.05


def aim_of(unit: str, best: float | None, values: Sequence[float]) -> str:
    """Which values of a metric are better.

    Args:
        unit: see `sea_export.evaluation.metrics.Metric`.
        best: the same; None, or infinity, where more is always better.
        values: those that are shown. If all are on one side of the best value, it is enough to say `higher` or `lower`,
            except of a share whose best value is neither 0 nor 1: of some groups it is above, of others below.

    Returns:
        `higher`, `lower`, `nearer` some value, or nothing for a number of tokens, which is neither.
    """
    if unit == _NEUTRAL_UNIT:
        return ""
    is_share = unit == "%"
    if best is None or math.isinf(best):
        return "higher"
    if not (is_share and 0 < best < 1):
        if all(value <= best for value in values):
            return "higher"
        if all(value >= best for value in values):
            return "lower"
    return f"nearer {100 * best if is_share else best:g}"


def verdict_of(
    unit: str,
    best: float | None,
    value: Sequence[float],
    base: Sequence[float] | None,
    difference: Sequence[float] | None,
    p_value: float | None,
) -> str:
    """Whether a metric is better than that of a base.

    Args:
        unit: see `aim_of`.
        best: see `aim_of`.
        value: mean and interval of the model.
        base: the same of the base; None if there is none.
        difference: mean and interval of the paired difference; None if there is no base.
        p_value: of the paired permutation test; None if there is no base.

    Returns:
        `better` or `worse`, where the interval of the difference does not hold 0 and p is at most 0.05; else
        `no measurable gain`. Both are asked for, because the interval alone is too narrow where few rows differ.
    """
    if base is None or difference is None or p_value is None or unit == _NEUTRAL_UNIT:
        return ""
    _, low, high = difference
    if not (low > 0 or high < 0) or p_value > _SIGNIFICANT:
        return "no measurable gain"
    rises = value[0] > base[0] if best is None or math.isinf(best) else abs(value[0] - best) < abs(base[0] - best)
    return "better" if rises else "worse"
