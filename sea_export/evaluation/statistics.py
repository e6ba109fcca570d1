"""Confidence intervals of figures by the bootstrap, and paired tests by exchange of rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sea_export.errors import InputError
from sea_export.evaluation.metrics import Metric, mean_metric

__all__ = [
    "Interval",
    "bootstrap_interval",
    "metric_differences",
    "metric_intervals",
    "paired_bootstrap_interval",
    "permutation_tests",
]

# Resamples are drawn so many at a time, to bound memory.
_CHUNK = 500


class Interval(NamedTuple):
    """A figure and the ends of its confidence interval."""

    mean: float
    low: float
    high: float


def metric_intervals(
    figures: Sequence[Metric], *, confidence: float = 0.95, samples: int = 10_000, seed: int = 0
) -> list[Interval]:
    """Figures of the same rows with their percentile bootstrap intervals (Efron 1979).

    The rows are taken as a random sample: an interval says what other rows of the kind would give.

    Args:
        figures: the figures.
        confidence: share of the resampled figures inside an interval, in (0, 1).
        samples: how many times the rows are drawn again, with replacement.
        seed: seed of the draws.

    Raises:
        InputError: there are no rows, or the confidence is not between 0 and 1.
    """
    draws: list[list[NDArray[np.float64]]] = [[] for _ in figures]
    for counts in _resamples(_row_count(figures), samples, seed):
        for one, figure in zip(draws, figures, strict=True):
            one.append(figure.statistic(counts @ figure.rows))
    return [_interval(figure.value, one, confidence) for figure, one in zip(figures, draws, strict=True)]


def metric_differences(
    figures: Sequence[Metric],
    baselines: Sequence[Metric],
    *,
    confidence: float = 0.95,
    samples: int = 10_000,
    seed: int = 0,
) -> list[Interval]:
    """`figure - baseline` with their intervals, from the same resampled rows of both.

    Both were measured on the same rows, which is what makes the intervals narrow: hard rows are hard for both.

    Args:
        figures: the figures of one model.
        baselines: the same of another, their rows in the same order.
        confidence: see `metric_intervals`.
        samples: see `metric_intervals`.
        seed: see `metric_intervals`.

    Raises:
        InputError: the two differ in their number of rows; or see `metric_intervals`.
    """
    draws: list[list[NDArray[np.float64]]] = [[] for _ in figures]
    for counts in _resamples(_row_count([*figures, *baselines]), samples, seed):
        for one, figure, baseline in zip(draws, figures, baselines, strict=True):
            one.append(figure.statistic(counts @ figure.rows) - baseline.statistic(counts @ baseline.rows))
    return [
        _interval(figure.value - baseline.value, one, confidence)
        for figure, baseline, one in zip(figures, baselines, draws, strict=True)
    ]


def permutation_tests(
    figures: Sequence[Metric], baselines: Sequence[Metric], *, samples: int = 10_000, seed: int = 0
) -> list[float]:
    """Two-sided p-values of the hypothesis that two models are alike (paired permutation tests).

    If they are, each row's two results could as well be the other way round. p is the share of random exchanges that
    put the figures at least as far apart as they are, the actual one counted; for means this is the sign-flip test.

    Args:
        figures: the figures of one model.
        baselines: the same of another, their rows in the same order.
        samples: how many random exchanges.
        seed: their seed.

    Raises:
        InputError: the two differ in their number of rows, or have none.
    """
    count = _row_count([*figures, *baselines])
    generator = np.random.default_rng(seed)
    extreme = [0] * len(figures)
    for size in _chunks(samples):
        exchanged = generator.integers(2, size=(size, count)).astype(np.float64)
        for index, (figure, baseline) in enumerate(zip(figures, baselines, strict=True)):
            moved = exchanged @ (baseline.rows - figure.rows)
            own, other = figure.rows.sum(axis=0) + moved, baseline.rows.sum(axis=0) - moved
            distance = np.abs(figure.statistic(own) - baseline.statistic(other))
            observed = abs(figure.value - baseline.value)
            extreme[index] += int((distance >= observed - 1e-9 * max(1.0, observed)).sum())  # rounding aside
    return [(1 + one) / (1 + samples) for one in extreme]


def bootstrap_interval(
    values: Sequence[float], *, confidence: float = 0.95, samples: int = 10_000, seed: int = 0
) -> Interval:
    """`metric_intervals` of the mean of `values`."""
    return metric_intervals([mean_metric("mean", values)], confidence=confidence, samples=samples, seed=seed)[0]


def paired_bootstrap_interval(
    values: Sequence[float],
    baseline: Sequence[float],
    *,
    confidence: float = 0.95,
    samples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """`metric_differences` of the means of `values` and of `baseline`, given row by row in the same order."""
    pair = [mean_metric("mean", values)], [mean_metric("mean", baseline)]
    return metric_differences(*pair, confidence=confidence, samples=samples, seed=seed)[0]


def _resamples(count: int, samples: int, seed: int) -> Iterator[NDArray[np.float64]]:
    """(chunk, count): how often each row is in each resample."""
    generator = np.random.default_rng(seed)
    for size in _chunks(samples):
        drawn = generator.integers(count, size=(size, count)) + count * np.arange(size)[:, None]
        yield np.bincount(drawn.ravel(), minlength=size * count).reshape(size, count).astype(np.float64)


def _chunks(samples: int) -> Iterator[int]:
    for start in range(0, samples, _CHUNK):
        yield min(_CHUNK, samples - start)


def _interval(value: float, draws: Sequence[NDArray[np.float64]], confidence: float) -> Interval:
    if not 0 < confidence < 1:
        raise InputError(f"a confidence of {confidence} is not between 0 and 1")
    # A resample without any row that a figure is about says nothing about it.
    low, high = np.nanquantile(np.concatenate(draws), [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(value, float(low), float(high))


def _row_count(figures: Sequence[Metric]) -> int:
    """The number of rows, which all figures must share; 1 for no figures, so that drawing rows does no harm."""
    counts = list(dict.fromkeys(len(figure.rows) for figure in figures)) or [1]
    if len(counts) > 1:
        raise InputError(f"{counts[0]} values cannot be paired with {counts[1]}")
    if counts[0] == 0:
        raise InputError("an interval needs at least one value")
    return counts[0]
