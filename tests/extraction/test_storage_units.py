"""The units of a storage are the distances between its numbers, and errors within them are told from other changes."""

from __future__ import annotations

import pytest
import torch

from sea_export.extraction.storage_units import ErrorMatrix, Residual, units_of

HALVES = (torch.bfloat16, torch.float16)


@pytest.mark.parametrize("dtype", [*HALVES, torch.float32])
def test_units_are_the_distances_to_the_next_numbers(dtype: torch.dtype) -> None:
    values = torch.randn(1000, generator=torch.Generator().manual_seed(0)).to(dtype)
    integer = torch.int32 if dtype == torch.float32 else torch.int16
    following = (values.view(integer) + 1).view(dtype)  # the next number away from zero
    assert torch.equal(units_of(values.double(), dtype), (following.double() - values.double()).abs())


def test_units_are_never_finer_than_those_of_an_edit() -> None:
    values = torch.tensor([1.0, -3.0, 0.0], dtype=torch.float64)
    assert torch.equal(units_of(values, torch.float64), units_of(values, torch.float32))
    assert units_of(values, torch.float32)[0] == torch.finfo(torch.float32).eps
    assert units_of(values, torch.bfloat16)[2] > 0


@pytest.mark.parametrize("shape", [(24, 40), (40, 24), (200, 600)])
@pytest.mark.parametrize("dtype", HALVES)
def test_the_bound_of_singular_values_holds_and_is_near(shape: tuple[int, int], dtype: torch.dtype) -> None:
    for seed in range(20):
        exact = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        stored = exact.to(dtype).double()
        errors = ErrorMatrix(shape[0])
        for columns in stored.split(7, dim=1):
            errors.update(units_of(columns, dtype))
        largest = float(torch.linalg.matrix_norm(stored - exact, 2))
        assert largest < errors.largest_singular_value < 3 * largest


def residual(before: torch.Tensor, after: torch.Tensor, edited: torch.Tensor) -> Residual:
    found = Residual(float(before.square().mean().sqrt()), torch.bfloat16)
    found.update(before.double(), after.double(), edited)
    return found


def test_a_residual_of_rounding_is_told_from_a_larger_one() -> None:
    generator = torch.Generator().manual_seed(0)
    before = torch.randn(30, 50, generator=generator).bfloat16()
    edited = before.double() + 0.1 * torch.randn(30, 50, generator=generator)
    rounded = residual(before, edited.bfloat16(), edited)
    assert rounded.is_rounding
    assert 0.3 < rounded.half_units < 1
    assert rounded.explained > 0.99
    assert not residual(before, (edited + 0.02).bfloat16(), edited).is_rounding
    one_wrong = edited.bfloat16()
    one_wrong[3, 4] += 0.5
    assert not residual(before, one_wrong, edited).is_rounding


def test_no_change_is_explained_and_an_unexplained_one_is_not() -> None:
    before = torch.ones(3, 4)
    same = residual(before, before, before.double())
    assert (same.half_units, same.explained, same.is_rounding) == (0, 1, True)
    assert residual(before, before + 1, before.double()).explained == 0
