"""Confidence intervals of means over questions, by the bootstrap."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from sea_export.errors import InputError

__all__ = ["Interval", "bootstrap_interval", "paired_bootstrap_interval"]


class Interval(NamedTuple):
    """A mean and the ends of its confidence interval."""

    mean: float
    low: float
    high: float


def bootstrap_interval(
    values: Sequence[float], *, confidence: float = 0.95, samples: int = 10_000, seed: int = 0
) -> Interval:
    """The mean of `values` with its percentile bootstrap interval (Efron 1979).

    The questions are taken as a random sample: an interval says what other questions of the kind would give.

    Args:
        values: one figure per question.
        confidence: share of the resampled means inside the interval, in (0, 1).
        samples: how many times the questions are drawn again, with replacement.
        seed: seed of the draws.

    Raises:
        InputError: there are no values, or the confidence is not between 0 and 1.
    """
    figures = np.asarray(values, dtype=np.float64)
    if figures.size == 0:
        raise InputError("an interval needs at least one value")
    if not 0 < confidence < 1:
        raise InputError(f"a confidence of {confidence} is not between 0 and 1")
    generator = np.random.default_rng(seed)
    means = [figures[generator.integers(figures.size, size=figures.size)].mean() for _ in range(samples)]
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(figures.mean()), float(low), float(high))


def paired_bootstrap_interval(
    values: Sequence[float],
    baseline: Sequence[float],
    *,
    confidence: float = 0.95,
    samples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """The mean of `values - baseline`, question by question, with its interval.

    Both were measured on the same questions, which is what makes the interval narrow: hard questions are hard for
    both.

    Args:
        values: one figure per question.
        baseline: the figures of the same questions in the same order.
        confidence: see `bootstrap_interval`.
        samples: see `bootstrap_interval`.
        seed: see `bootstrap_interval`.

    Raises:
        InputError: the two differ in length; or see `bootstrap_interval`.
    """
    if len(values) != len(baseline):
        raise InputError(f"{len(values)} values cannot be paired with {len(baseline)}")
    differences = np.asarray(values, dtype=np.float64) - np.asarray(baseline, dtype=np.float64)
    return bootstrap_interval(differences.tolist(), confidence=confidence, samples=samples, seed=seed)
