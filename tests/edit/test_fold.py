"""Parameters with an edit folded in are the dense product, rounded once, and give the edited output."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from sea_export.edit import fold
from sea_export.edit.fold import fold_parameters, fold_tensor
from sea_export.model.architecture import OutputProjection, ProjectionWeight
from sea_export.model.targets import Target
from sea_export.options import CENTERS
from tests.helpers.reference import dense_of
from tests.helpers.tiny_edits import SIZE, some_edit


def ulps(actual: Tensor, expected: Tensor) -> Tensor:
    """How many units in the last place of `actual`'s dtype lie between it and `expected` (float64), rounded."""
    rounded = expected.to(actual.dtype).double()
    exponent = torch.frexp(rounded).exponent - 1
    unit = torch.finfo(actual.dtype).eps * 2.0**exponent
    return (actual.double() - rounded).abs() / unit


def linear_projection(size: int = SIZE, *, bias: bool = False, output_dim: int = 0) -> OutputProjection:
    weight = ProjectionWeight("block.down.weight", output_dim, "block.down.bias" if bias else None)
    return OutputProjection(Target(0, "mlp"), "block", size, (weight,))


def module_and_parameters(kind: str, *, bias: bool) -> tuple[torch.nn.Module, OutputProjection, dict[str, Tensor]]:
    torch.manual_seed(0)
    module = torch.nn.Linear(40, SIZE, bias=bias) if kind == "Linear" else Conv1D(SIZE, 40)
    torch.nn.init.normal_(module.weight)
    if bias:
        torch.nn.init.normal_(module.bias)
    projection = linear_projection(bias=bias, output_dim=0 if kind == "Linear" else 1)
    return module, projection, {f"block.down.{name}": value.detach() for name, value in module.named_parameters()}


@pytest.mark.parametrize("center", CENTERS)
@pytest.mark.parametrize(("kind", "bias"), [("Linear", False), ("Linear", True), ("Conv1D", True)])
def test_a_module_with_folded_parameters_gives_its_edited_output(kind, bias, center):
    module, projection, parameters = module_and_parameters(kind, bias=bias)
    edit = some_edit(center=center)
    folded = fold_parameters(projection, [edit], parameters)
    inputs = torch.randn(10, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    expected = dense_of(edit)(copy.deepcopy(module).double()(inputs))
    weight = folded["block.down.weight"].double()
    actual = inputs @ (weight.T if kind == "Linear" else weight)
    if bias or center == "affine":
        actual = actual + folded["block.down.bias"].double()
    else:
        assert folded.keys() == {"block.down.weight"}
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(actual, module.double()(inputs), rtol=0.05)


@pytest.mark.parametrize("center", CENTERS)
@pytest.mark.parametrize("kind", ["Linear", "Conv1D"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_folded_parameters_are_the_dense_product_rounded_once(dtype, kind, center):
    _, projection, parameters = module_and_parameters(kind, bias=True)
    parameters = {name: value.to(dtype) for name, value in parameters.items()}
    edits = [some_edit(0, center=center), some_edit(1, center=center)]
    folded = fold_parameters(projection, edits, parameters)
    weight, bias = (parameters[f"block.down.{name}"].double() for name in ("weight", "bias"))
    columns = weight.T if kind == "Conv1D" else weight
    for edit in edits:
        dense = dense_of(edit)
        columns = (dense.matrix + torch.outer(dense.spread, dense.reader)) @ columns
        bias = dense(bias)
    expected = {"weight": columns.T if kind == "Conv1D" else columns, "bias": bias}
    for name, value in expected.items():
        actual = folded[f"block.down.{name}"]
        assert actual.dtype == dtype
        assert actual.shape == parameters[f"block.down.{name}"].shape
        distance = ulps(actual, value)
        # Half precision is folded in float32, whose own rounding shows where terms cancel.
        assert (distance > 0).double().mean() < 0.01
        assert distance.max() <= 1 or dtype != torch.float32


def test_an_affine_edit_makes_a_bias_that_is_the_dense_one_rounded_once():
    """A second edit must act on the bias of the first, in float64, although the output projection has none."""
    _, projection, parameters = module_and_parameters("Linear", bias=False)
    edits = [some_edit(seed, center="affine") for seed in range(3)]
    bias = torch.zeros(SIZE, dtype=torch.float64)
    for edit in edits:
        bias = dense_of(edit)(bias)
    folded = fold_parameters(projection, edits, parameters)["block.down.bias"]
    assert ulps(folded, bias).max() <= 1


@pytest.mark.parametrize("rows", [1, 7, SIZE])
@pytest.mark.parametrize("output_dim", [0, 1])
def test_the_number_of_rows_folded_at_a_time_does_not_matter(output_dim, rows, monkeypatch):
    weight = torch.randn(SIZE, SIZE + 5).movedim(0, output_dim).contiguous()
    expected = fold_tensor(weight, [some_edit()], output_dim)
    monkeypatch.setattr(fold, "_FOLD_BLOCK", rows * weight.shape[1])
    in_blocks = fold_tensor(weight, [some_edit()], output_dim)
    torch.testing.assert_close(in_blocks, expected, rtol=1e-6, atol=1e-7)
    assert in_blocks.is_contiguous()


@pytest.mark.parametrize("output_dim", [1, 2])
def test_stacked_weights_are_folded_one_by_one(output_dim):
    """The experts of a mixture, which some models keep in one tensor."""
    experts = torch.randn(3, SIZE, SIZE + 5).movedim(1, output_dim)
    folded = fold_tensor(experts, [some_edit()], output_dim)
    assert folded.shape == experts.shape
    for expert, actual in zip(experts, folded, strict=True):
        assert torch.equal(actual, fold_tensor(expert, [some_edit()], output_dim - 1))


def test_folding_leaves_the_original_parameters_alone():
    _, projection, parameters = module_and_parameters("Linear", bias=True)
    before = {name: value.clone() for name, value in parameters.items()}
    fold_parameters(projection, [some_edit(center="affine")], parameters)
    assert all(torch.equal(parameters[name], value) for name, value in before.items())


@pytest.mark.parametrize("center", CENTERS)
def test_edits_are_folded_in_the_order_given(center):
    _, projection, parameters = module_and_parameters("Linear", bias=True)
    first, second = some_edit(0, center=center), some_edit(1, center=center)
    folded = fold_parameters(projection, [first, second], parameters)
    one_by_one = fold_parameters(projection, [second], fold_parameters(projection, [first], parameters))
    other_order = fold_parameters(projection, [second, first], parameters)
    for name in folded:
        torch.testing.assert_close(folded[name], one_by_one[name], rtol=1e-5, atol=1e-5)
        assert (folded[name] - other_order[name]).norm() > 0.01 * folded[name].norm()
