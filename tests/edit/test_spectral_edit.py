"""Edits equal their dense definition, option by option."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from sea_export.capture.activations import Activations
from sea_export.errors import InputError
from sea_export.fitting.spectrum import SpectrumFitter
from sea_export.fitting.truncate import build_layer_edit
from sea_export.options import CENTERS, PROJECTIONS, EditOptions
from tests.helpers.messages import naming
from tests.helpers.reference import dense_edit, dense_of, random_activations
from tests.helpers.tiny_edits import SIZE, layer_edit, some_edit

LINEAR_NORMALIZATIONS = ("none", "average", "calibrated")

# Against the dense definition


@pytest.mark.slow
@pytest.mark.parametrize("center", CENTERS)
@pytest.mark.parametrize("normalization", LINEAR_NORMALIZATIONS)
@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0, -1.0])
@pytest.mark.parametrize("projections", PROJECTIONS)
@pytest.mark.parametrize("count", [9, 60], ids=["n<d", "n>d"])
def test_every_option_means_what_the_definition_says(count, projections, strength, normalization, center):
    activations = random_activations(count, SIZE)
    options = EditOptions(
        positive_variance=0.99,
        negative_variance=0.8,
        projections=projections,
        strength=strength,
        normalization=normalization,
    )
    edit, expected = layer_edit(activations, center, options), dense_edit(activations, center, options)
    rows = random_activations(5, SIZE, seed=1).neutral
    torch.testing.assert_close(edit.apply(rows), expected(rows), rtol=1e-5, atol=1e-5)
    assert edit.relative_change == pytest.approx(expected.relative_change, rel=1e-6, abs=1e-12)


@pytest.mark.parametrize(
    "changed",
    [
        {"positive_variance": 0.5},
        {"negative_variance": 0.5},
        {"positive_rank": 2},
        {"negative_rank": 2},
        {"explained_variance": 0.5},
        {"positive_rank": 0, "negative_rank": 3},
        {"projections": "positive"},
        {"projections": "negative"},
        {"projections": "reversed"},
        {"strength": 0.9},
        {"normalization": "average"},
        {"normalization": "calibrated"},
    ],
    ids=lambda changed: ", ".join(f"{name}={value}" for name, value in changed.items()),
)
def test_each_option_changes_the_edit_as_the_definition_does(changed):
    """Against a base setting: an option that were ignored would be seen here."""
    activations = random_activations(60, SIZE)
    base, options = EditOptions(explained_variance=0.999), EditOptions(**{"explained_variance": 0.999, **changed})
    edited = layer_edit(activations, options=options).apply(activations.neutral)
    torch.testing.assert_close(
        edited, dense_edit(activations, "off", options)(activations.neutral), rtol=1e-5, atol=1e-5
    )
    assert (edited - layer_edit(activations, options=base).apply(activations.neutral)).norm() > 0.01 * edited.norm()


def test_positive_and_negative_shares_are_read_apart():
    activations = random_activations(60, SIZE)
    edit = layer_edit(activations, options=EditOptions(positive_variance=0.999, negative_variance=0.5))
    same = layer_edit(activations, options=EditOptions(explained_variance=0.999))
    assert edit.positive.shape == same.positive.shape
    assert edit.negative.shape[1] < same.negative.shape[1]


def test_a_rank_takes_the_place_of_a_share():
    edit = layer_edit(options=EditOptions(positive_rank=5, negative_rank=0, positive_variance=0.1))
    assert edit.positive.shape == (SIZE, 5)
    assert edit.negative.shape == (SIZE, 0)


def test_reversed_swaps_the_roles_and_what_is_reported():
    activations = random_activations(60, SIZE)
    options = EditOptions(positive_variance=0.99, negative_variance=0.5)
    plain, swapped = (
        layer_edit(activations, options=replace(options, projections=name)) for name in ("both", "reversed")
    )
    assert torch.equal(swapped.positive, plain.negative)
    assert torch.equal(swapped.negative, plain.positive)
    assert torch.equal(swapped.positive_values, plain.negative_values)
    assert torch.equal(swapped.negative_values, plain.positive_values)


def test_all_variance_uses_every_direction_that_the_demonstrations_span():
    activations = random_activations(9, SIZE)
    options = EditOptions(explained_variance=1.0, projections="negative")
    edit = layer_edit(activations, options=options)
    assert edit.negative.shape == (SIZE, 9)
    assert edit.apply(activations.neutral).norm() < 1e-5 * activations.neutral.norm()
    assert layer_edit(activations, "affine", options).negative.shape == (SIZE, 8)


def test_the_negative_projection_drops_and_the_positive_one_keeps():
    """P- h has nothing along U-; P+ h has nothing besides U+."""
    activations = random_activations(60, SIZE)
    dropping = layer_edit(activations, options=EditOptions(projections="negative"))
    keeping = layer_edit(activations, options=EditOptions(projections="positive"))
    dropped, kept = dropping.apply(activations.neutral), keeping.apply(activations.neutral)
    assert (dropped @ dropping.negative.double()).abs().max() < 1e-5
    back = kept @ keeping.positive.double() @ keeping.positive.double().T
    torch.testing.assert_close(back, kept, rtol=1e-5, atol=1e-5)
    assert torch.linalg.matrix_rank(kept, rtol=1e-5) == keeping.positive.shape[1]


@pytest.mark.parametrize("center", ["affine", "linear"])
def test_centred_edits_leave_the_mean_neutral_activation_in_place(center):
    activations = random_activations(60, SIZE)
    mean = activations.neutral.mean(0)
    options = EditOptions(projections="negative", explained_variance=0.99)
    edited = layer_edit(activations, center, options).apply(mean)
    tolerance = 1e-5 if center == "affine" else 0.05  # the constant reader is a regression
    assert (edited - mean).norm() < tolerance * mean.norm()
    assert (layer_edit(activations, "off", options).apply(mean) - mean).norm() > 0.1 * mean.norm()


def test_factors_are_rounded_once_and_last():
    """Float32 factors are the rounded float64 ones: the truncation and the calibration saw no float32."""
    activations = random_activations(60, SIZE, dtype=torch.float32)
    spectrum = SpectrumFitter("affine").update(activations).finish()
    edit = build_layer_edit(spectrum, EditOptions(normalization="calibrated"))
    assert all(tensor.dtype == torch.float32 for tensor in edit.tensors().values())
    assert torch.equal(edit.positive, spectrum.positive_vectors[:, : edit.positive.shape[1]].float())
    expected = dense_edit(activations, "affine", EditOptions(normalization="calibrated"))
    shift = (edit.shift.double() - expected.constant).abs()
    assert (shift <= 2.0**-24 * expected.constant.abs() + 1e-12).all()


# Calibration


@pytest.mark.parametrize("center", CENTERS)
@pytest.mark.parametrize("count", [9, 60], ids=["n<d", "n>d"])
def test_calibrated_edits_keep_every_feature_norm_over_the_demonstrations(count, center):
    activations = random_activations(count, SIZE)
    edit = dense_of(layer_edit(activations, center, EditOptions(normalization="calibrated")))
    rows = activations.neutral if center == "off" else activations.neutral - activations.neutral.mean(0)
    torch.testing.assert_close((rows @ edit.matrix.T).norm(dim=0), rows.norm(dim=0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("value", [0.0, 0.3], ids=["zero", "constant"])
@pytest.mark.parametrize("center", CENTERS)
@pytest.mark.parametrize("count", [9, 60], ids=["n<d", "n>d"])
def test_features_without_a_norm_are_not_scaled(count, center, value):
    """A feature that is zero throughout (centred: constant) has no norm to keep: its scale is 1, not noise."""
    activations = random_activations(count, SIZE)
    activations.neutral[:, [3, 7]] = value
    scale = layer_edit(activations, center, EditOptions(normalization="calibrated")).scale
    assert torch.isfinite(scale).all()
    if value == 0 or center != "off":
        assert scale[[3, 7]].tolist() == [1, 1]
    assert (scale != 1).sum() >= SIZE - 2


@pytest.mark.parametrize("count", [9, 60], ids=["n<d", "n>d"])
def test_features_that_the_edit_removes_are_not_scaled(count):
    """P- with all directions leaves rounding of H0, whose norms would make scales of 1e15."""
    options = EditOptions(projections="negative", explained_variance=1.0, normalization="calibrated")
    scale = layer_edit(random_activations(count, SIZE), options=options).scale
    assert scale.tolist() == [1] * SIZE


@pytest.mark.parametrize("center", CENTERS)
@pytest.mark.parametrize("normalization", LINEAR_NORMALIZATIONS)
@pytest.mark.parametrize("count", [9, 60], ids=["n<d", "n>d"])
def test_zero_activations_give_an_edit_that_is_finite_and_changes_nothing(count, normalization, center):
    edit = layer_edit(Activations(*torch.zeros(3, count, SIZE)), center, EditOptions(normalization=normalization))
    assert all(torch.isfinite(tensor).all() for tensor in edit.tensors().values())
    rows = torch.randn(3, SIZE)
    torch.testing.assert_close(edit.apply(rows), rows / 2 if normalization == "average" else rows)
    assert edit.relative_change == 0


# Options


@pytest.mark.parametrize(
    ("values", "facts"),
    [
        ({"explained_variance": 0.0}, ["--explained-variance", 0.0]),
        ({"explained_variance": 1.01}, ["--explained-variance", 1.01]),
        ({"explained_variance": math.nan}, ["--explained-variance", "nan"]),
        ({"positive_variance": -0.5}, ["--positive-variance", -0.5]),
        ({"negative_variance": 2.0}, ["--negative-variance", 2.0]),
        ({"positive_rank": -1}, ["--positive-rank", -1]),
        ({"negative_rank": -1}, ["--negative-rank", -1]),
        ({"projections": "neither"}, ["--projections", "'neither'", "both"]),
        ({"normalization": "batch"}, ["--normalization", "'batch'"]),
        ({"strength": math.inf}, ["--strength", "inf"]),
        ({"strength": math.nan}, ["--strength", "nan"]),
    ],
    ids=lambda value: "" if isinstance(value, list) else str(value),
)
def test_wrong_options_are_refused(values, facts):
    with pytest.raises(InputError, match=naming(*facts)):
        EditOptions(**values)


@pytest.mark.parametrize("kind", ["positive", "negative"])
def test_a_rank_that_the_demonstrations_do_not_span_is_refused(kind):
    with pytest.raises(InputError, match=naming(f"--{kind}-rank", 10, 9)):
        layer_edit(random_activations(9, SIZE), options=EditOptions(**{f"{kind}_rank": 10}))


# Application to activations


@pytest.mark.parametrize("center", CENTERS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64], ids=str)
def test_activations_keep_their_dtype_and_are_rounded_once(dtype, center):
    edit = some_edit(center=center)
    rows = random_activations(6, SIZE, seed=2, dtype=dtype).neutral.reshape(2, 3, SIZE)
    edited = edit.apply(rows)
    assert edited.dtype == dtype
    assert edited.shape == rows.shape
    # Half precision is computed in float32, and a rounding to it is half a unit in the last place.
    own, arithmetic = torch.finfo(dtype).eps / 2, max(torch.finfo(dtype).eps, 1e-15)
    arithmetic = min(arithmetic, torch.finfo(torch.float32).eps)
    torch.testing.assert_close(edited.double(), dense_of(edit)(rows), rtol=1.01 * own, atol=20 * arithmetic)
