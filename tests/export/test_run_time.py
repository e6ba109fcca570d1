"""The steps that exported code runs compute the edits that they stand for, at the least rank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from sea_export.edit.features import FeatureFunction
from sea_export.edit.layer_edit import LayerEdit
from sea_export.export.custom_code.run_time import Step, run_time_steps
from sea_export.fitting.spectrum import SpectrumFitter
from sea_export.fitting.truncate import build_layer_edit
from sea_export.options import CENTERS, FEATURE_FUNCTIONS, NORMALIZATIONS, PROJECTIONS, EditOptions
from tests.helpers.reference import random_activations

SIZE = 24


def some_edit(
    seed: int = 0, *, center: str = "off", function: str = "identity", count: int = 60, **options: object
) -> LayerEdit:
    fitter = SpectrumFitter(center, FeatureFunction(function, 0.8))
    settings = {"explained_variance": 0.9, **options}
    return build_layer_edit(fitter.update(random_activations(count, SIZE, seed=seed)).finish(), EditOptions(**settings))


def some_rows() -> Tensor:
    return random_activations(11, SIZE, seed=9).neutral


def applied(edits: Sequence[LayerEdit], rows: Tensor) -> Tensor:
    for edit in edits:
        rows = edit.apply(rows)
    return rows


def linear_step(step: Step, rows: Tensor) -> Tensor:
    """What the settings and tensors of a linear step say, without the exported code."""
    tensors = {name: tensor.double() for name, tensor in step.tensors.items()}
    edited = rows * tensors.get("scale", 1.0) + (rows @ tensors["read"].T) @ tensors["write"] + tensors.get("shift", 0)
    if step.settings["normalization"] == "none":
        return edited
    dim = 1 if step.settings["normalization"] == "token" else 0
    return edited * rows.norm(dim=dim, keepdim=True) / edited.norm(dim=dim, keepdim=True)


@pytest.mark.parametrize("center", CENTERS)
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("projections", PROJECTIONS)
@pytest.mark.parametrize("strength", [1.0, 0.4])
def test_a_linear_edit_is_one_step(center: str, normalization: str, projections: str, strength: float) -> None:
    edit = some_edit(center=center, normalization=normalization, projections=projections, strength=strength)
    (step,) = run_time_steps([edit])
    assert step.settings["kind"] == "linear"
    assert step.settings["normalization"] == edit.normalization
    assert step.settings["rank"] == len(step.tensors["read"]) <= SIZE
    assert step.settings["shifted"] is ("shift" in step.tensors) is (center == "affine")
    assert step.settings["scaled"] is ("scale" in step.tensors)
    torch.testing.assert_close(linear_step(step, some_rows()), edit.apply(some_rows()), rtol=1e-5, atol=1e-5)


def test_directions_that_are_kept_and_dropped_cost_nothing() -> None:
    edit = some_edit(positive_rank=5, negative_rank=3)
    assert run_time_steps([edit])[0].settings["rank"] == 8
    overlapping = replace(edit, negative=torch.cat([edit.positive[:, 1:3], edit.negative[:, 1:]], dim=1))
    (step,) = run_time_steps([overlapping])
    assert step.settings["rank"] == 5, "two of five kept directions are dropped as well, beside two others"
    torch.testing.assert_close(linear_step(step, some_rows()), overlapping.apply(some_rows()), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("center", CENTERS)
def test_linear_edits_in_turn_are_one_step_in_their_order(center: str) -> None:
    edits = [
        some_edit(0, center=center, normalization="calibrated", explained_variance=0.999),
        some_edit(1, center=center, strength=0.5, positive_rank=2, negative_rank=6),
        some_edit(2, center=center, normalization="average", explained_variance=0.999),
    ]
    (step,) = run_time_steps(edits)
    torch.testing.assert_close(linear_step(step, some_rows()), applied(edits, some_rows()), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(linear_step(step, some_rows()), applied(edits[::-1], some_rows()), rtol=1e-3, atol=1e-3)


def test_what_is_not_linear_divides_the_steps() -> None:
    plain, token, tanh = some_edit(), some_edit(1, normalization="token"), some_edit(2, function="tanh")

    def kinds(*edits: LayerEdit) -> list[str]:
        return [f"{step.settings['kind']} {step.settings['normalization']}" for step in run_time_steps(edits)]

    assert kinds(plain, plain) == ["linear none"]
    assert kinds(plain, token, plain) == ["linear token", "linear none"]
    assert kinds(plain, tanh, plain, plain) == ["linear none", "features none", "linear none"]
    assert kinds(tanh, tanh) == ["features none", "features none"]
    assert kinds(token, tanh) == ["linear token", "features none"]


@pytest.mark.parametrize("function", [name for name in FEATURE_FUNCTIONS if name != "identity"])
@pytest.mark.parametrize("projections", PROJECTIONS)
def test_a_feature_step_has_the_directions_of_its_terms(function: str, projections: str) -> None:
    edit = some_edit(function=function, projections=projections, normalization="calibrated", strength=0.5)
    (step,) = run_time_steps([edit])
    assert step.settings["function"] == function
    assert step.settings["length_scale"] == 0.8
    assert step.settings["strength"] == 0.5
    for name, term, left_out in (("kept", "positive", "negative"), ("dropped", "negative", "positive")):
        if projections == left_out:
            assert step.settings[name] is None
            assert f"{name}_directions" not in step.tensors
        else:
            assert torch.equal(step.tensors[f"{name}_directions"], getattr(edit, term).T)
            assert step.settings[name] == getattr(edit, term).shape[1]
    assert torch.equal(step.tensors["scale"], edit.scale)


def test_steps_are_float32_and_contiguous() -> None:
    for step in run_time_steps([some_edit(center="affine"), some_edit(function="elu")]):
        for tensor in step.tensors.values():
            assert tensor.dtype == torch.float32
            assert tensor.is_contiguous()
