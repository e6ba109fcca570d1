"""The figures that benchmarks give: functions of sums over rows, so that all of them can be resampled alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Metric", "Sums", "mean_metric", "mean_of_sums"]

Sums = NDArray[np.float64]


@dataclass(frozen=True)
class Metric:
    """One figure of a benchmark, kept as what each row contributes to it.

    A mean, a ratio and a bias score are all functions of column sums. The bootstrap draws rows again, and a test
    swaps the rows of two models: either changes the sums, and the function does the rest.
    """

    name: str
    rows: NDArray[np.float64]
    """(n, k): the contributions of each row. Two models' figures have theirs in the same order."""
    statistic: Callable[[Sums], Sums]
    """(..., k) sums over rows -> (...) the figure."""
    best: float
    """The value that the best model has: 1 for an accuracy, 0 for a divergence, 0.5 for a share that should be even."""
    unit: str = "%"
    """`%` for shares, which are shown times 100; `nats`; or nothing."""
    group: str = ""
    """Which rows it is about, such as a category; nothing for all."""

    @property
    def value(self) -> float:
        """The figure itself."""
        return float(self.statistic(self.rows.sum(axis=0)))

    @property
    def score(self) -> float:
        """How good the value is, for a search: the higher the better, 0 at best."""
        return -abs(self.value - self.best)


def mean_of_sums(sums: Sums) -> Sums:
    """Σ value / Σ weight, of columns (value, weight); NaN where all weights are 0."""
    with np.errstate(invalid="ignore", divide="ignore"):
        quotient: Sums = sums[..., 0] / sums[..., 1]
    return quotient


def mean_metric(
    name: str,
    values: Sequence[float],
    *,
    weights: Sequence[float] | None = None,
    best: float = 1.0,
    unit: str = "%",
    group: str = "",
) -> Metric:
    """The mean of one value a row; with weights Σ value / Σ weight, values then being sums themselves.

    Args:
        name: what it is called.
        values: one a row.
        weights: one a row; 1 if None.
        best: see `Metric`.
        unit: see `Metric`.
        group: see `Metric`.
    """
    numerators = np.asarray(values, dtype=np.float64)
    denominators = np.ones_like(numerators) if weights is None else np.asarray(weights, dtype=np.float64)
    return Metric(name, np.stack([numerators, denominators], axis=1), mean_of_sums, best, unit, group)
