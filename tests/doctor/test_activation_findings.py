"""What activations show of demonstrations: on random numbers with a planted fault, and without."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sea_export.capture.activations import Activations
from sea_export.doctor.activation_findings import activation_findings, share_of_length

COUNT, SIZE = 60, 24
ROWS = [f"row {number + 1}" for number in range(COUNT)]


def made(*, along_length: float = 0.0) -> tuple[Activations, Tensor]:
    """Activations whose positive ones differ by a direction, and by lengths times another one."""
    generator = torch.Generator().manual_seed(3)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    negative, meant, of_length = normal(COUNT, SIZE), normal(SIZE), normal(SIZE)
    lengths = torch.randint(-3, 10, (COUNT,), generator=generator)
    difference = 2 * meant + 0.5 * normal(COUNT, SIZE) + along_length * lengths[:, None] * of_length
    return Activations(normal(COUNT, SIZE), negative + difference, negative), lengths


def names(activations: Activations, lengths: Tensor) -> dict[str, tuple[str, ...]]:
    return {one.name: one.rows for one in activation_findings(activations, lengths, ROWS, "MLP of layer 1")}


def test_clean_ones_have_no_findings() -> None:
    assert names(*made()) == {}


def test_swapped_rows_are_named() -> None:
    activations, lengths = made()
    for row in (7, 33):
        kept = activations.positive[row].clone()
        activations.positive[row] = activations.negative[row]
        activations.negative[row] = kept
    assert names(activations, lengths) == {"labels": ("row 8", "row 34")}


def test_outliers_are_named() -> None:
    activations, lengths = made()
    activations.positive[11] *= 60
    assert names(activations, lengths)["outliers"] == ("row 12",)


def test_length_is_found() -> None:
    activations, lengths = made(along_length=4.0)
    assert "length in the activations" in names(activations, lengths)


def test_the_share_of_length_is_that_of_least_squares() -> None:
    lengths = torch.tensor([1.0, 2.0, 3.0, 6.0])
    a, b = torch.tensor([0.0, 1.0]), torch.tensor([1.0, 0.0])
    differences = (a + lengths[:, None] * b).double()
    # The mean is (3, 1), of which (0, 1) remains.
    assert share_of_length(differences, lengths) == pytest.approx(1 - 1 / 10)
    assert share_of_length(differences, torch.full((4,), 2.0)) == 0
    assert share_of_length(torch.zeros(4, 2).double(), lengths) == 0


def test_few_demonstrations_show_nothing() -> None:
    activations, lengths = made()
    few = Activations(*(one[:10] for one in (activations.neutral, activations.positive * 100, activations.negative)))
    assert activation_findings(few, lengths[:10], ROWS[:10], "MLP of layer 1") == []
