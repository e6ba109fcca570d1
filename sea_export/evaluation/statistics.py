"""Confidence intervals of metrics by the bootstrap, and paired permutation tests."""

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

# So many resamples are drawn at a time, to bound memory.
_CHUNK = 500


class Interval(NamedTuple):
    """A value and the ends of its confidence interval."""

    mean: float
    low: float
    high: float


def metric_intervals(
    metrics: Sequence[Metric], *, confidence: float = 0.95, samples: int = 10_000, seed: int = 0
) -> list[Interval]:
    """Metrics of the same rows with their percentile bootstrap intervals (Efron 1979).

    The rows count as a random sample. An interval says what other rows of the same kind would give.

    Args:
        metrics: the metrics.
        confidence: share of the resampled metrics inside an interval, in (0, 1).
        samples: how many times the rows are drawn again, with replacement.
        seed: seed of the draws.

    Raises:
        InputError: there are no rows, or the confidence is not between 0 and 1.
    """
    draws: list[list[NDArray[np.float64]]] = [[] for _ in metrics]
    for counts in _resamples(_row_count(metrics), samples, seed):
        for one, metric in zip(draws, metrics, strict=True):
            one.append(metric.statistic(counts @ metric.rows))
    return [_interval(metric.value, one, confidence) for metric, one in zip(metrics, draws, strict=True)]


def metric_differences(
    metrics: Sequence[Metric],
    baselines: Sequence[Metric],
    *,
    confidence: float = 0.95,
    samples: int = 10_000,
    seed: int = 0,
) -> list[Interval]:
    """`metric - baseline` with their intervals, from the same resampled rows of both.

    Both were measured on the same rows. This makes the intervals narrow, because hard rows are hard for both models.

    Args:
        metrics: the metrics of one model.
        baselines: those of another model, with their rows in the same order.
        confidence: see `metric_intervals`.
        samples: see `metric_intervals`.
        seed: see `metric_intervals`.

    Raises:
        InputError: the two have different numbers of rows; or see `metric_intervals`.
    """
    draws: list[list[NDArray[np.float64]]] = [[] for _ in metrics]
    for counts in _resamples(_row_count([*metrics, *baselines]), samples, seed):
        for one, metric, baseline in zip(draws, metrics, baselines, strict=True):
            one.append(metric.statistic(counts @ metric.rows) - baseline.statistic(counts @ baseline.rows))
    return [
        _interval(metric.value - baseline.value, one, confidence)
        for metric, baseline, one in zip(metrics, baselines, draws, strict=True)
    ]


def permutation_tests(
    metrics: Sequence[Metric], baselines: Sequence[Metric], *, samples: int = 10_000, seed: int = 0
) -> list[float]:
    """Two-sided p-values of the hypothesis that two models are alike (paired permutation tests).

    If they are alike, the two results of each row can be exchanged. p is the share of random exchanges after which the
    metrics differ at least as much as they do now; the observed result counts as one. For means this is the sign-flip
    test.

    Args:
        metrics: the metrics of one model.
        baselines: those of another model, with their rows in the same order.
        samples: the number of random exchanges.
        seed: seed of the exchanges.

    Raises:
        InputError: the two have different numbers of rows, or no rows.
    """
    count = _row_count([*metrics, *baselines])
    generator = np.random.default_rng(seed)
    extreme = [0] * len(metrics)
    for size in _chunks(samples):
        exchanged = generator.integers(2, size=(size, count)).astype(np.float64)
        for index, (metric, baseline) in enumerate(zip(metrics, baselines, strict=True)):
            moved = exchanged @ (baseline.rows - metric.rows)
            own, other = metric.rows.sum(axis=0) + moved, baseline.rows.sum(axis=0) - moved
            distance = np.abs(metric.statistic(own) - baseline.statistic(other))
            observed = abs(metric.value - baseline.value)
            extreme[index] += int((distance >= observed - 1e-9 * max(1.0, observed)).sum())  # but for rounding
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
    """(chunk, count): the number of times that each row is in each resample."""
    generator = np.random.default_rng(seed)
    for size in _chunks(samples):
        drawn = generator.integers(count, size=(size, count)) + count * np.arange(size)[:, None]
        yield np.bincount(drawn.ravel(), minlength=size * count).reshape(size, count).astype(np.float64)


def _chunks(samples: int) -> Iterator[int]:
    for start in range(0, samples, _CHUNK):
        yield min(_CHUNK, samples - start)


def _interval(value: float, draws: Sequence[NDArray[np.float64]], confidence: float) -> Interval:
    if not 0 < confidence < 1:
        raise InputError(f"confidence: {confidence} is out of range. Give a number between 0 and 1.")
    # A resample without any row of a group says nothing about the metrics of that group.
    low, high = np.nanquantile(np.concatenate(draws), [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(value, float(low), float(high))


def _row_count(metrics: Sequence[Metric]) -> int:
    """The number of rows, which is the same for all metrics; 1 if there are no metrics, so that rows can be drawn."""
    counts = list(dict.fromkeys(len(metric.rows) for metric in metrics)) or [1]
    if len(counts) > 1:
        raise InputError(
            f"metrics: {counts[0]} values cannot be paired with {counts[1]}. Measure both models on the same rows."
        )
    if counts[0] == 0:
        raise InputError("metrics: an interval needs at least one value. Give at least one row.")
    return counts[0]
