"""The triangle of two matrices, made some columns at a time, says what the matrices say."""

from __future__ import annotations

import pytest
import torch

from sea_export.extraction.joint_triangle import joint_triangle


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("inputs", [3, 6, 9, 40])
@pytest.mark.parametrize("step", [1, 4, 100])
def test_spectrum_and_solution_are_those_of_whole_matrices(inputs: int, step: int) -> None:
    size = 6
    before, change = random(size, inputs), random(size, inputs, seed=1)
    pieces = [
        (before.T[start : start + step], (before + change).T[start : start + step]) for start in range(0, inputs, step)
    ]
    triangle = joint_triangle(pieces, size)
    values, directions = triangle.spectrum()
    expected = torch.linalg.svdvals(change)
    torch.testing.assert_close(values[: len(expected)], expected)
    assert triangle.inputs == inputs
    kept = directions[:, :2]
    torch.testing.assert_close(triangle.rows_of(kept), kept.T @ change @ torch.linalg.pinv(before))
    outputs = random(3, size, seed=3)
    torch.testing.assert_close(triangle.input_norms(outputs), (outputs @ torch.linalg.pinv(before).T).norm(dim=1))


def test_a_map_of_the_output_comes_back() -> None:
    before, change = random(6, 40), random(6, 2, seed=1) @ random(2, 6, seed=2)
    triangle = joint_triangle([(before.T, (before + change @ before).T)], 6)
    values, directions = triangle.spectrum()
    assert values[1] > 1e-3
    assert values[2] < 1e-12
    kept = directions[:, :2]
    torch.testing.assert_close(kept @ triangle.rows_of(kept), change)


def test_weights_of_lower_rank_have_a_solution() -> None:
    before = random(6, 3) @ random(3, 40, seed=1)
    change = random(6, 6, seed=2)
    triangle = joint_triangle([(before.T, (before + change @ before).T)], 6)
    _, directions = triangle.spectrum()
    kept = directions[:, :3]
    found = kept @ triangle.rows_of(kept)
    torch.testing.assert_close(found @ before, change @ before)
