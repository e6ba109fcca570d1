"""Metrics of benchmarks. Each is a function of sums over rows, so that all of them are resampled in the same way."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Metric", "Sums", "mean_metric", "mean_of_sums"]

Sums = NDArray[np.float64]


@dataclass(frozen=True)
class Metric:
    """One metric of a benchmark, with what each row contributes to it.

    A mean, a ratio and a bias score are functions of column sums. The bootstrap draws rows again, and a permutation
    test exchanges rows of two models. Both change only the sums.
    """

    name: str
    rows: NDArray[np.float64]
    """(n, k): the contributions of each row. The rows of two models are in the same order."""
    statistic: Callable[[Sums], Sums]
    """(..., k) sums over rows -> (...) the metric."""
    best: float
    """The value of the best model: 1 for an accuracy, 0 for a divergence, 0.5 for a preference that should be even;
    infinity where more is always better."""
    unit: str = "%"
    """`%` for shares, which are shown multiplied by 100; `nats`; or empty."""
    group: str = ""
    """Which rows it is about, such as a category; empty for all rows."""

    @property
    def value(self) -> float:
        """The value over all rows."""
        return float(self.statistic(self.rows.sum(axis=0)))

    @property
    def score(self) -> float:
        """How good the value is, for a search: higher is better. Where there is a best value, it has the score 0."""
        return self.value if math.isinf(self.best) else -abs(self.value - self.best)


def mean_of_sums(sums: Sums) -> Sums:
    """Σ value / Σ weight, of columns (value, weight); NaN if all weights are 0."""
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
    """The mean of one value per row; with weights Σ value / Σ weight, where the values are sums themselves.

    Args:
        name: its name.
        values: one per row.
        weights: one per row; 1 if None.
        best: see `Metric`.
        unit: see `Metric`.
        group: see `Metric`.
    """
    numerators = np.asarray(values, dtype=np.float64)
    denominators = np.ones_like(numerators) if weights is None else np.asarray(weights, dtype=np.float64)
    return Metric(name, np.stack([numerators, denominators], axis=1), mean_of_sums, best, unit, group)
