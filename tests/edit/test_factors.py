"""Factors of a product are its best approximation, and exact where the rank allows."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sea_export.edit.factors import best_factors


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("size", [(12, 4, 9), (6, 10, 8), (9, 10, 5)], ids=["k<min", "d<m<k", "m<d<k"])
def test_exact_at_the_rank_of_the_matrix(size: tuple[int, int, int]) -> None:
    d, k, m = size
    left, right = normal(d, k), normal(k, m, seed=1)
    factors = best_factors(left, right, None)
    assert factors.exact_rank == factors.b.shape[1] == min(size)
    assert factors.relative_error == 0
    torch.testing.assert_close(factors.b @ factors.a, left @ right)
    torch.testing.assert_close(factors.b.T @ factors.b, torch.eye(min(size), dtype=torch.float64))


@pytest.mark.parametrize("rank", [1, 3, 5])
def test_cut_ones_reach_the_bound_of_the_singular_values(rank: int) -> None:
    left, right = normal(12, 7), normal(7, 9, seed=1)
    matrix = left @ right
    values = torch.linalg.svdvals(matrix)
    factors = best_factors(left, right, rank)
    error = (matrix - factors.b @ factors.a).norm()
    assert float(error) == pytest.approx(float(values[rank:].norm()), rel=1e-10)
    assert factors.relative_error == pytest.approx(float(error / matrix.norm()), rel=1e-10)
    assert factors.exact_rank == 7


def test_no_change_of_cut_factors_is_better() -> None:
    left, right = normal(12, 7), normal(7, 9, seed=1)
    factors = best_factors(left, right, 3)
    best = (left @ right - factors.b @ factors.a).norm()
    for seed in range(200):
        step = 10.0 ** -(seed % 6)
        b = factors.b + step * normal(*factors.b.shape, seed=seed)
        a = factors.a + step * normal(*factors.a.shape, seed=1000 + seed)
        a_best = torch.linalg.lstsq(b, left @ right).solution
        assert (left @ right - b @ a).norm() >= best * (1 - 1e-12)
        assert (left @ right - b @ a_best).norm() >= best * (1 - 1e-12)


def test_directions_that_cancel_cost_no_rank() -> None:
    left, right = normal(12, 3), normal(3, 9, seed=1)
    twice = best_factors(torch.cat([left, -left.float().double(), left], 1), torch.cat([right, right, right]), None)
    assert twice.exact_rank == 3
    torch.testing.assert_close(twice.b @ twice.a, left @ right, rtol=1e-5, atol=1e-6)


def test_signs_do_not_depend_on_the_factors_given() -> None:
    left, right = normal(12, 4), normal(4, 9, seed=1)
    mixing = normal(4, 4, seed=2)
    one, other = best_factors(left, right, None), best_factors(left @ mixing, torch.linalg.solve(mixing, right), None)
    torch.testing.assert_close(one.b, other.b)
    torch.testing.assert_close(one.a, other.a)
    assert (one.b.gather(0, one.b.abs().argmax(0, keepdim=True)) > 0).all()


@pytest.mark.parametrize("width", [0, 4])
def test_nothing_is_a_product_of_rank_one_with_a_row_that_is_not_zero(width: int) -> None:
    factors = best_factors(torch.zeros(12, width, dtype=torch.float64), normal(width, 9), 3)
    assert factors.exact_rank == 0
    assert factors.b.shape == (12, 1)
    assert not (factors.b @ factors.a).any()
    assert factors.a.any()
