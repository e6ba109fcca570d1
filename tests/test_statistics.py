"""Bootstrap intervals: coverage, width, pairing."""

from __future__ import annotations

import numpy as np
import pytest

from sea_export.errors import InputError
from sea_export.evaluation.statistics import bootstrap_interval, paired_bootstrap_interval


def normal(count: int, seed: int = 0) -> list[float]:
    return np.random.default_rng(seed).normal(size=count).tolist()


@pytest.mark.parametrize(("confidence", "low", "high"), [(0.95, 0.90, 0.985), (0.5, 0.42, 0.58)])
def test_intervals_contain_the_true_mean_as_often_as_they_say(confidence: float, low: float, high: float) -> None:
    covered = 0
    for experiment in range(400):
        interval = bootstrap_interval(normal(50, experiment), confidence=confidence, samples=300)
        covered += interval.low <= 0 <= interval.high
    assert low < covered / 400 < high


def test_width_is_that_of_the_normal_approximation() -> None:
    values = normal(400)
    interval = bootstrap_interval(values)
    assert interval.mean == pytest.approx(np.mean(values))
    expected = 1.96 * np.std(values) / np.sqrt(400)
    assert interval.high - interval.mean == pytest.approx(expected, rel=0.05)
    assert interval.mean - interval.low == pytest.approx(expected, rel=0.05)


def test_the_seed_decides_the_draws() -> None:
    values = normal(30)
    assert bootstrap_interval(values, seed=1) == bootstrap_interval(values, seed=1)
    assert bootstrap_interval(values, seed=1) != bootstrap_interval(values, seed=2)


def test_equal_values_have_no_spread() -> None:
    assert bootstrap_interval([0.5] * 10) == (0.5, 0.5, 0.5)


def test_pairing_takes_out_what_both_share() -> None:
    difficulty, noise = np.array(normal(200, 1)), np.array(normal(200, 2))
    edited = (difficulty + 0.1 + 0.05 * noise).tolist()
    paired = paired_bootstrap_interval(edited, difficulty.tolist())
    unpaired = bootstrap_interval(edited)
    assert paired.mean == pytest.approx(0.1, abs=0.02)
    assert paired.low > 0
    assert paired.high - paired.low < 0.2 * (unpaired.high - unpaired.low)


def test_a_shuffled_baseline_is_another_pairing() -> None:
    """Negative control: same mean, but an interval as wide as two independent samples give."""
    values = normal(200)
    shuffled = np.random.default_rng(5).permutation(values).tolist()
    assert paired_bootstrap_interval(values, values) == (0, 0, 0)
    apart = paired_bootstrap_interval(values, shuffled)
    assert apart.mean == pytest.approx(0)
    assert apart.high - apart.low > 0.2


def test_bad_input_is_refused() -> None:
    with pytest.raises(InputError, match="at least one"):
        bootstrap_interval([])
    with pytest.raises(InputError, match="between 0 and 1"):
        bootstrap_interval([1.0], confidence=95)
    with pytest.raises(InputError, match="2 values cannot be paired with 1"):
        paired_bootstrap_interval([1.0, 2.0], [1.0])
