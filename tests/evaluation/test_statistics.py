"""Bootstrap intervals: coverage, width, pairing."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from sea_export.errors import InputError
from sea_export.evaluation.metrics import Metric, mean_metric
from sea_export.evaluation.statistics import (
    bootstrap_interval,
    metric_intervals,
    paired_bootstrap_interval,
    permutation_tests,
)
from tests.helpers.messages import naming


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
    with pytest.raises(InputError, match="one"):
        bootstrap_interval([])
    with pytest.raises(InputError, match=naming(95, 0, 1)):
        bootstrap_interval([1.0], confidence=95)
    with pytest.raises(InputError, match=naming(2, 1)):
        paired_bootstrap_interval([1.0, 2.0], [1.0])


def ratio(values: list[float], weights: list[float]) -> Metric:
    return mean_metric("ratio", values, weights=weights)


def test_a_ratio_of_sums_is_resampled_as_one() -> None:
    """Not as the mean of the rows' own ratios, and with numerator and denominator drawn together."""
    weights = np.random.default_rng(1).integers(1, 20, size=200)
    values = 0.5 * weights + 0.1 * np.random.default_rng(2).normal(size=200)
    (interval,) = metric_intervals([ratio(values.tolist(), weights.tolist())])
    assert interval.mean == pytest.approx(values.sum() / weights.sum())
    residual = (values - interval.mean * weights) / weights.mean()
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * residual.std() / np.sqrt(200), rel=0.1)


def test_resamples_without_any_row_of_a_group_do_not_count() -> None:
    (interval,) = metric_intervals([ratio([1.0, 0, 0], [1.0, 0, 0])])
    assert interval == (1, 1, 1)


def test_the_permutation_test_is_the_sign_flip_test_for_means() -> None:
    differences = np.array([1.0, 2.0, -0.5, 3.0, 1.5, 0.25, -1.0, 2.0])
    baseline = np.array(normal(8))
    signs = np.array(list(itertools.product((-1, 1), repeat=8)))
    exact = np.mean(np.abs(signs @ differences) >= abs(differences.sum()) - 1e-9)
    own, other = mean_metric("x", (baseline + differences).tolist()), mean_metric("x", baseline.tolist())
    (p_value,) = permutation_tests([own], [other], samples=40_000)
    assert p_value == pytest.approx(exact, abs=0.01)


def test_p_values_are_as_small_as_they_say() -> None:
    """Under the hypothesis that both models are alike p is uniform; under a clear difference it is tiny."""
    p_values = []
    for experiment in range(300):
        own, other = normal(30, experiment), normal(30, 1000 + experiment)
        p_values += permutation_tests([mean_metric("x", own)], [mean_metric("x", other)], samples=200)
    assert 0.02 < np.mean(np.array(p_values) <= 0.05) < 0.08
    assert 0.42 < np.mean(np.array(p_values) <= 0.5) < 0.58
    far = mean_metric("x", (np.array(normal(30)) + 3).tolist())
    assert permutation_tests([far], [mean_metric("x", normal(30, 5))], samples=999) == [0.001]


def test_equal_models_have_a_p_value_of_one() -> None:
    metric = ratio([1.0, 2, 3], [2.0, 2, 5])
    assert permutation_tests([metric], [metric]) == [1.0]
