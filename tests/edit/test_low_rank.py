"""The product of layer edits in low-rank form is the product of their dense definitions."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from sea_export.edit.layer_edit import LayerEdit
from sea_export.edit.low_rank import low_rank_edit
from sea_export.errors import InputError
from sea_export.options import EditOptions
from tests.helpers.messages import naming
from tests.helpers.reference import dense_of, random_activations
from tests.helpers.tiny_edits import layer_edit, some_edit


def applied_densely(edits: list[LayerEdit], rows: torch.Tensor) -> torch.Tensor:
    for edit in edits:
        rows = dense_of(edit)(rows)
    return rows


EDITS = {
    "plain": lambda: [some_edit(normalization="none")],
    "average": lambda: [some_edit(normalization="average")],
    "calibrated": lambda: [some_edit(normalization="calibrated")],
    "affine": lambda: [some_edit(center="affine")],
    "linear": lambda: [some_edit(center="linear")],
    "keeping only": lambda: [layer_edit(options=EditOptions(projections="positive", normalization="calibrated"))],
    "keeping a part": lambda: [layer_edit(options=EditOptions(projections="positive", strength=0.3))],
    "two": lambda: [some_edit(0, normalization="none"), some_edit(1, normalization="none")],
    "three of every kind": lambda: [some_edit(0, center="affine"), some_edit(1, center="linear"), some_edit(2)],
    "affine twice": lambda: [some_edit(0, center="affine"), some_edit(1, center="affine")],
    "keeping only, then another": lambda: [layer_edit(options=EditOptions(projections="positive")), some_edit(1)],
}


@pytest.mark.parametrize("name", EDITS)
def test_product_equals_the_dense_edits_in_turn(name: str) -> None:
    edits = EDITS[name]()
    rows = random_activations(7, edits[0].size, seed=5).neutral
    expected = applied_densely(edits, rows)
    torch.testing.assert_close(low_rank_edit(edits).apply(rows), expected, rtol=1e-10, atol=1e-10)
    if len(edits) > 1:
        assert not torch.allclose(low_rank_edit(edits[::-1]).apply(rows), expected, rtol=1e-3), "their order matters"


def test_the_identity_has_a_coefficient_of_one_wherever_there_is_any() -> None:
    assert low_rank_edit(EDITS["keeping a part"]()).identity == 1
    assert low_rank_edit(EDITS["keeping only"]()).identity == 0


def test_a_scale_of_zero_is_refused() -> None:
    edit = some_edit()
    assert edit.scale is not None
    scale = edit.scale.clone()
    scale[3] = 0
    with pytest.raises(InputError, match=naming("zero")):
        low_rank_edit([replace(edit, scale=scale)])
