"""Feature functions are what their table says, stay finite everywhere, and make the edits that the method defines."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

import sea_export
from sea_export.capture.activations import Activations
from sea_export.edit.features import EPSILON, FeatureFunction
from sea_export.edit.fold import fold_bias, fold_tensor
from sea_export.edit.layer_edit import LayerEdit
from sea_export.edit.spectral_edit import SpectralEdit
from sea_export.edit.summary import sequence_warning
from sea_export.errors import InputError
from sea_export.export.formats import export_format
from sea_export.fitting.spectrum import SpectrumFitter
from sea_export.fitting.truncate import build_layer_edit
from sea_export.model.targets import Target
from sea_export.options import (
    FEATURE_FUNCTIONS,
    PROJECTIONS,
    EditOptions,
    ExportOptions,
    FitOptions,
)
from tests.helpers.messages import naming
from tests.helpers.reference import left_singular, random_activations, rank_for_variance
from tests.helpers.tiny_models import tiny_model

NONLINEAR = [name for name in FEATURE_FUNCTIONS if name != "identity"]
SIZE = 24


def forward_of(name: str, x: float, scale: float) -> float:
    """φ(x), one number at a time."""
    return {
        "identity": lambda: x,
        "squared-exponential": lambda: math.exp(-(x**2) / (2 * scale**2)),
        "tanh": lambda: math.tanh(x),
        "elu": lambda: x if x > 0 else math.exp(x) - 1,
    }[name]()


def inverse_of(name: str, y: float, x: float, scale: float) -> float:
    """φ⁻¹(y), one number at a time."""
    sign = (x > 0) - (x < 0)
    return {
        "identity": lambda: y,
        "squared-exponential": lambda: sign * math.sqrt(-2 * scale**2 * math.log(min(max(y, 1e-4), 1))),
        "tanh": lambda: math.atanh(min(max(y, -1 + 1e-4), 1 - 1e-4)),
        "elu": lambda: y if y > 0 else math.log(1 + max(y, -1 + 1e-4)),
    }[name]()


def every_bfloat16() -> Tensor:
    values = torch.arange(2**16, dtype=torch.int32).to(torch.uint16).view(torch.bfloat16)
    return values[values.isfinite()]


def finite_values(dtype: torch.dtype) -> Tensor:
    """Every finite bfloat16 or float16; float32 at random over all bit patterns, and its extremes."""
    if dtype == torch.bfloat16:
        return every_bfloat16()
    if dtype == torch.float16:
        values = torch.arange(2**16, dtype=torch.int32).to(torch.uint16).view(torch.float16)
        return values[values.isfinite()]
    generator = torch.Generator().manual_seed(0)
    bits = torch.randint(-(2**31), 2**31, (200_000,), generator=generator).to(torch.int32).view(torch.float32)
    limits = torch.finfo(torch.float32)
    poles = [value + step for value in (-1.0, 0.0, 1.0) for step in (-EPSILON, -limits.eps, 0, limits.eps, EPSILON)]
    extremes = [limits.max, limits.min, limits.tiny, -limits.tiny, 1e-45, -1e-45, 0.0, -0.0, *poles]
    return torch.cat([bits[bits.isfinite()], torch.tensor(extremes)])


@pytest.mark.parametrize("name", FEATURE_FUNCTIONS)
@pytest.mark.parametrize("scale", [0.3, 1.0, 4.0])
def test_forward_and_inverse_are_those_of_the_table(name: str, scale: float) -> None:
    feature = FeatureFunction(name, scale)
    xs = [-30.0, -2.5, -1.0, -0.3, 0.0, 1e-3, 0.7, 1.0, 3.0, 12.0]
    ys = [-2.0, -1.0, -0.99995, -0.5, 0.0, 1e-5, 0.5, 0.99995, 1.0, 5.0]
    x, y = torch.tensor(xs, dtype=torch.float64), torch.tensor(ys, dtype=torch.float64)
    expected = torch.tensor([forward_of(name, value, scale) for value in xs], dtype=torch.float64)
    torch.testing.assert_close(feature.forward(x), expected, rtol=1e-12, atol=1e-12)
    for sign in (-1.0, 0.0, 2.0):
        expected = torch.tensor([inverse_of(name, value, sign, scale) for value in ys], dtype=torch.float64)
        torch.testing.assert_close(feature.inverse(y, torch.full_like(y, sign)), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", FEATURE_FUNCTIONS)
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_no_finite_value_gives_nan_or_infinity(name: str, scale: float, dtype: torch.dtype) -> None:
    feature, values = FeatureFunction(name, scale), finite_values(dtype)
    features = feature.forward(values)
    assert features.isfinite().all()
    assert feature.inverse(features, values).isfinite().all()
    for sign in (-1, 0, 1):  # a projection may turn features into anything
        assert feature.inverse(values, torch.full_like(values, sign)).isfinite().all()


DOMAINS = {
    "identity": (-1e3, 1e3),
    "squared-exponential": (-4.29, 4.29),  # sqrt(-2 ln ε)
    "tanh": (-4.95, 4.95),  # atanh(1 - ε)
    "elu": (-9.21, 1e3),  # ln ε
}


@pytest.mark.parametrize("name", FEATURE_FUNCTIONS)
@pytest.mark.parametrize("scale", [0.3, 1.0, 4.0])
def test_inverse_undoes_forward_on_its_domain_and_not_beyond(name: str, scale: float) -> None:
    feature = FeatureFunction(name, scale)
    low, high = DOMAINS[name]
    if name == "squared-exponential":
        low, high = scale * low, scale * high
    x = torch.linspace(low, high, 4001, dtype=torch.float64)
    # Near 0 the squared exponential is flat: rounding of φ(x) is felt there as its root.
    torch.testing.assert_close(feature.inverse(feature.forward(x), x), x, rtol=1e-8, atol=1e-7 * max(1, scale))
    single = feature.inverse(feature.forward(x.float()), x.float())
    torch.testing.assert_close(single.double(), x, rtol=2e-3, atol=1e-3 * max(1, scale))
    if name != "identity":
        beyond = torch.tensor([low * 1.2, high * 1.2 if name != "elu" else low * 2], dtype=torch.float64)
        assert ((feature.inverse(feature.forward(beyond), beyond) - beyond).abs() > 0.1 * scale).all()


@pytest.mark.parametrize(("name", "scale"), [("relu", 1.0), ("tanh", 0.0), ("tanh", -1.0), ("tanh", math.nan)])
def test_wrong_feature_functions_are_refused(name: str, scale: float) -> None:
    with pytest.raises(InputError):
        FeatureFunction(name, scale)
    with pytest.raises(InputError):
        FitOptions(feature_function=name, length_scale=scale)


@pytest.mark.parametrize("center", ["affine", "linear"])
def test_centring_goes_with_the_identity_only(center: str) -> None:
    with pytest.raises(InputError, match=naming("--feature-function identity")):
        FitOptions(center=center, feature_function="tanh")
    with pytest.raises(InputError, match=naming("--feature-function identity")):
        SpectrumFitter(center, FeatureFunction("tanh"))


# Edits


def defined_edit(activations: Activations, rows: Tensor, feature: FeatureFunction, options: EditOptions) -> Tensor:
    """The edit of rows (n, d) from dense matrices, as the method's definition reads."""
    neutral, positive, negative = (
        feature.forward(kind.double()) for kind in (activations.neutral, activations.positive, activations.negative)
    )

    def projector(completion: Tensor, variance: float) -> Tensor:
        vectors, values = left_singular(neutral.T @ completion / len(neutral))
        kept = vectors[:, : rank_for_variance(values, variance)]
        return kept @ kept.T

    plus, minus = projector(positive, options.variance("positive")), projector(negative, options.variance("negative"))
    if options.projections == "reversed":
        plus, minus = minus, plus
    features = feature.forward(rows)
    terms = {
        "positive": feature.inverse(features @ plus, rows),
        "negative": feature.inverse(features @ (torch.eye(SIZE, dtype=torch.float64) - minus), rows),
    }
    edited = sum(terms.values()) if options.projections in ("both", "reversed") else terms[options.projections]
    return rows + options.strength * (edited - rows)


def nonlinear_edit(activations: Activations, feature: FeatureFunction, options: EditOptions) -> LayerEdit:
    return build_layer_edit(SpectrumFitter(feature=feature).update(activations).finish(), options)


@pytest.mark.parametrize("name", FEATURE_FUNCTIONS)
@pytest.mark.parametrize("projections", PROJECTIONS)
@pytest.mark.parametrize("strength", [1.0, 0.4])
@pytest.mark.parametrize("count", [9, 60], ids=["n<d", "n>d"])
def test_the_edit_is_the_sum_of_both_terms(name: str, projections: str, strength: float, count: int) -> None:
    activations, feature = random_activations(count, SIZE), FeatureFunction(name, 0.8)
    options = EditOptions(positive_variance=0.99, negative_variance=0.8, projections=projections, strength=strength)
    edit = nonlinear_edit(activations, feature, options)
    rows = random_activations(7, SIZE, seed=1).neutral
    expected = defined_edit(activations, rows, feature, options)
    torch.testing.assert_close(edit.apply(rows), expected, rtol=1e-4, atol=1e-4)
    neutral = activations.neutral.double()
    change = (defined_edit(activations, neutral, feature, options) - neutral).norm() / neutral.norm()
    assert edit.relative_change == pytest.approx(float(change), rel=1e-6)
    assert float((expected - rows).norm() / rows.norm()) > 0.01


@pytest.mark.parametrize("name", NONLINEAR)
def test_nonlinear_edits_are_not_linear(name: str) -> None:
    edit = nonlinear_edit(random_activations(60, SIZE), FeatureFunction(name), EditOptions())
    rows = random_activations(7, SIZE, seed=1).neutral
    assert float((edit.apply(2 * rows) - 2 * edit.apply(rows)).norm() / rows.norm()) > 0.01


@pytest.mark.parametrize("name", NONLINEAR)
@pytest.mark.parametrize("count", [9, 60], ids=["n<d", "n>d"])
def test_normalizations_follow_the_nonlinear_edit(name: str, count: int) -> None:
    activations, feature = random_activations(count, SIZE), FeatureFunction(name)
    plain = nonlinear_edit(activations, feature, EditOptions())
    normalized = {
        kind: nonlinear_edit(activations, feature, EditOptions(normalization=kind))
        for kind in ("average", "calibrated", "token", "sequence")
    }
    rows = random_activations(6, SIZE, seed=1).neutral
    edited = plain.apply(rows)
    torch.testing.assert_close(normalized["average"].apply(rows), edited / 2)
    neutral = activations.neutral
    torch.testing.assert_close(
        normalized["calibrated"].apply(neutral).norm(dim=0), neutral.norm(dim=0), rtol=1e-5, atol=1e-8
    )
    assert not torch.allclose(plain.apply(neutral).norm(dim=0), neutral.norm(dim=0), rtol=1e-2)
    by_token = normalized["token"].apply(rows.reshape(2, 3, SIZE)).reshape(6, SIZE)
    torch.testing.assert_close(by_token, edited * (rows.norm(dim=1) / edited.norm(dim=1))[:, None])
    by_feature = normalized["sequence"].apply(rows.reshape(2, 3, SIZE)).reshape(6, SIZE)
    torch.testing.assert_close(by_feature, edited * (rows.norm(dim=0) / edited.norm(dim=0)))


def test_sequence_depends_on_later_tokens_and_on_the_batch_and_token_does_not() -> None:
    activations, rows = random_activations(60, SIZE), random_activations(6, SIZE, seed=1).neutral
    for normalization, independent in (("token", True), ("sequence", False)):
        edit = nonlinear_edit(activations, FeatureFunction(), EditOptions(normalization=normalization))
        alone = edit.apply(rows[None, :3])
        assert torch.allclose(edit.apply(rows[None])[:, :3], alone) is independent
        assert torch.allclose(edit.apply(rows.reshape(2, 3, SIZE))[:1], alone) is independent
        warning = sequence_warning([edit.summary(Target(0, "mlp"))])
        assert (warning is None) is independent


@pytest.mark.parametrize("normalization", ["token", "sequence"])
def test_rows_that_the_edit_makes_zero_stay_zero(normalization: str) -> None:
    options = EditOptions(normalization=normalization, projections="positive", positive_rank=0)
    edit = nonlinear_edit(random_activations(60, SIZE), FeatureFunction(), options)
    assert edit.apply(random_activations(4, SIZE).neutral.float()).eq(0).all()


@pytest.mark.parametrize("name", NONLINEAR)
def test_streamed_activations_give_the_same_spectrum(name: str) -> None:
    activations, feature = random_activations(300, SIZE), FeatureFunction(name)
    whole = SpectrumFitter(feature=feature).update(activations).finish()
    fitter = SpectrumFitter(feature=feature)
    for start in range(0, 300, 7):
        kinds = (activations.neutral, activations.positive, activations.negative)
        fitter.update(Activations(*(kind[start : start + 7] for kind in kinds)))
    streamed = fitter.finish()
    torch.testing.assert_close(streamed.positive_values, whole.positive_values)
    assert streamed.neutral is not None
    assert torch.equal(streamed.neutral, activations.neutral)
    assert streamed.signature == pytest.approx(whole.signature)
    unmapped = SpectrumFitter().update(activations).finish()
    assert streamed.signature == pytest.approx(unmapped.signature), "layers are ranked by their activations"
    assert not torch.allclose(streamed.positive_values[:3], unmapped.positive_values[:3])


@pytest.mark.parametrize("name", NONLINEAR)
def test_nonlinear_edits_come_back_from_disk(name: str, tmp_path) -> None:
    options = EditOptions(normalization="token", projections="negative")
    edit = SpectralEdit(
        {Target(1, "mlp"): (nonlinear_edit(random_activations(60, SIZE), FeatureFunction(name, 0.7), options),)}
    )
    edit.save(tmp_path)
    (loaded,) = SpectralEdit.load(tmp_path).layers[Target(1, "mlp")]
    (original,) = edit.layers[Target(1, "mlp")]
    assert loaded.numbers() == original.numbers()
    assert (loaded.feature_function, loaded.length_scale, loaded.normalization) == (name, 0.7, "token")
    rows = random_activations(5, SIZE, seed=1).neutral
    assert torch.equal(loaded.apply(rows), original.apply(rows))


# What cannot be folded


def test_folding_is_refused_with_the_nearest_foldable_setting() -> None:
    linear = nonlinear_edit(random_activations(60, SIZE), FeatureFunction(), EditOptions())
    weight = torch.randn(SIZE, 3, generator=torch.Generator().manual_seed(0))
    fold_tensor(weight, [linear], 0)
    for change, message in (
        ({"feature_function": "tanh"}, "--feature-function identity"),
        ({"normalization": "token"}, "--normalization calibrated"),
        ({"normalization": "sequence"}, "--normalization calibrated"),
    ):
        edit = replace(linear, **change)
        with pytest.raises(InputError, match=naming(message)):
            fold_tensor(weight, [edit], 0)
        with pytest.raises(InputError, match=naming(message)):
            fold_bias(None, [edit], torch.float32)


@pytest.mark.parametrize(
    ("feature_function", "normalization", "foldable"),
    [("identity", "calibrated", True), ("identity", "token", False), ("elu", "none", False)],
)
def test_formats_are_checked_before_any_work(feature_function: str, normalization: str, foldable: bool) -> None:
    options = FitOptions(feature_function=feature_function, edit=EditOptions(normalization=normalization))
    export_format("custom-code").check_options(options, ExportOptions(format="custom-code"))
    if foldable:
        export_format("merged").check_options(options, ExportOptions(format="merged"))
    else:
        with pytest.raises(InputError, match=naming("--format custom-code")):
            export_format("merged").check_options(options, ExportOptions(format="merged"))


@pytest.mark.parametrize("name", NONLINEAR)
def test_a_model_is_fitted_and_edited_with_features(name: str, llama, tokenizer, demonstrations) -> None:
    edit = sea_export.fit(llama, tokenizer, demonstrations, layers="1,3", feature_function=name, length_scale=2.0)
    assert edit.provenance["options"]["feature_function"] == name
    assert {layer.feature for layers in edit.layers.values() for layer in layers} == {FeatureFunction(name, 2.0)}
    tokens = torch.tensor([[5, 40, 7, 99]])
    outputs = {}
    handles = [
        llama.model.layers[1].mlp.register_forward_hook(lambda module, inputs, output: outputs.update(plain=output))
    ]
    with torch.inference_mode(), edit.apply(llama):
        handles.append(
            llama.model.layers[1].mlp.register_forward_hook(
                lambda module, inputs, output: outputs.update(edited=output)
            )
        )
        llama(tokens)
    for handle in handles:
        handle.remove()
    (layer,) = edit.layers[Target(1, "mlp")]
    assert torch.equal(outputs["edited"], layer.apply(outputs["plain"]))
    assert not torch.allclose(outputs["edited"], outputs["plain"], atol=1e-2)
    assert tiny_model("llama") is llama
