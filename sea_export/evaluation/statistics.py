"""Confidence intervals of figures by the bootstrap, and paired tests by exchange of rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sea_export.errors import InputError
from sea_export.evaluation.figures import Figure, mean_figure

__all__ = [
    "Interval",
    "bootstrap_interval",
    "exchange_test",
    "figure_difference",
    "figure_interval",
    "paired_bootstrap_interval",
]

# Resamples are drawn so many at a time, to bound memory.
_CHUNK = 500


class Interval(NamedTuple):
    """A figure and the ends of its confidence interval."""

    mean: float
    low: float
    high: float


def figure_interval(figure: Figure, *, confidence: float = 0.95, samples: int = 10_000, seed: int = 0) -> Interval:
    """A figure with its percentile bootstrap interval (Efron 1979).

    The rows are taken as a random sample: an interval says what other rows of the kind would give.

    Args:
        figure: the figure.
        confidence: share of the resampled figures inside the interval, in (0, 1).
        samples: how many times the rows are drawn again, with replacement.
        seed: seed of the draws.

    Raises:
        InputError: there are no rows, or the confidence is not between 0 and 1.
    """
    _check(figure, confidence)
    draws = np.concatenate(
        [figure.statistic(counts @ figure.rows) for counts in _resamples(len(figure.rows), samples, seed)]
    )
    return _interval(figure.value, draws, confidence)


def figure_difference(
    figure: Figure, baseline: Figure, *, confidence: float = 0.95, samples: int = 10_000, seed: int = 0
) -> Interval:
    """`figure - baseline` with its interval, from the same resampled rows of both.

    Both were measured on the same rows, which is what makes the interval narrow: hard rows are hard for both.

    Args:
        figure: the figure of one model.
        baseline: the same of another, its rows in the same order.
        confidence: see `figure_interval`.
        samples: see `figure_interval`.
        seed: see `figure_interval`.

    Raises:
        InputError: the two differ in their number of rows; or see `figure_interval`.
    """
    _check_pair(figure, baseline)
    _check(figure, confidence)
    draws = np.concatenate(
        [
            figure.statistic(counts @ figure.rows) - baseline.statistic(counts @ baseline.rows)
            for counts in _resamples(len(figure.rows), samples, seed)
        ]
    )
    return _interval(figure.value - baseline.value, draws, confidence)


def exchange_test(figure: Figure, baseline: Figure, *, samples: int = 10_000, seed: int = 0) -> float:
    """Two-sided p-value of the hypothesis that the two models are alike (a paired permutation test).

    If they are, each row's two results could as well be the other way round. p is the share of random exchanges that
    put the figures at least as far apart as they are, the actual one counted; for means this is the sign-flip test.

    Args:
        figure: the figure of one model.
        baseline: the same of another, its rows in the same order.
        samples: how many random exchanges.
        seed: their seed.

    Raises:
        InputError: the two differ in their number of rows, or have none.
    """
    _check_pair(figure, baseline)
    _check(figure, 0.95)
    count = len(figure.rows)
    generator = np.random.default_rng(seed)
    own, other = figure.rows.sum(axis=0), baseline.rows.sum(axis=0)
    change = baseline.rows - figure.rows
    observed = abs(figure.value - baseline.value)
    tolerance = 1e-9 * max(1.0, observed)
    extreme = 0
    for size in _chunks(samples):
        moved = generator.integers(2, size=(size, count)).astype(np.float64) @ change
        distance = np.abs(figure.statistic(own + moved) - baseline.statistic(other - moved))
        extreme += int((distance >= observed - tolerance).sum())
    return (1 + extreme) / (1 + samples)


def bootstrap_interval(
    values: Sequence[float], *, confidence: float = 0.95, samples: int = 10_000, seed: int = 0
) -> Interval:
    """`figure_interval` of the mean of `values`."""
    figure = mean_figure("mean", values)
    return figure_interval(figure, confidence=confidence, samples=samples, seed=seed)


def paired_bootstrap_interval(
    values: Sequence[float],
    baseline: Sequence[float],
    *,
    confidence: float = 0.95,
    samples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """`figure_difference` of the means of `values` and of `baseline`, given row by row in the same order."""
    pair = mean_figure("mean", values), mean_figure("mean", baseline)
    return figure_difference(*pair, confidence=confidence, samples=samples, seed=seed)


def _resamples(count: int, samples: int, seed: int) -> Iterator[NDArray[np.float64]]:
    """(chunk, count): how often each row is in each resample."""
    generator = np.random.default_rng(seed)
    for size in _chunks(samples):
        drawn = generator.integers(count, size=(size, count)) + count * np.arange(size)[:, None]
        yield np.bincount(drawn.ravel(), minlength=size * count).reshape(size, count).astype(np.float64)


def _chunks(samples: int) -> Iterator[int]:
    for start in range(0, samples, _CHUNK):
        yield min(_CHUNK, samples - start)


def _interval(value: float, draws: NDArray[np.float64], confidence: float) -> Interval:
    low, high = np.quantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(value, float(low), float(high))


def _check(figure: Figure, confidence: float) -> None:
    if len(figure.rows) == 0:
        raise InputError("an interval needs at least one value")
    if not 0 < confidence < 1:
        raise InputError(f"a confidence of {confidence} is not between 0 and 1")


def _check_pair(figure: Figure, baseline: Figure) -> None:
    if len(figure.rows) != len(baseline.rows):
        raise InputError(f"{len(figure.rows)} values cannot be paired with {len(baseline.rows)}")
