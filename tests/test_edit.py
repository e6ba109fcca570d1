"""Edits equal their dense definition; folding, applying and storing them keep it."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterable
from dataclasses import fields, replace

import pytest
import torch
from reference import dense_edit, dense_of, random_activations
from safetensors.torch import load_file, save_file
from tiny_models import FAMILIES, blocks_of, hook_count, tiny_model
from torch import Tensor
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from sea_export.architecture import Writer, WriterWeight, fold_parameters, fold_tensor
from sea_export.edit import LayerEdit, SpectralEdit, Target, build_layer_edit, compose
from sea_export.errors import InputError
from sea_export.options import CENTERS, PROJECTIONS, EditOptions
from sea_export.spectral import Activations, SpectrumFitter

SIZE = 24
LINEAR_NORMALIZATIONS = ("none", "average", "calibrated")
TOKENS = torch.tensor([[5, 40, 7, 99, 300, 12, 6]])


def layer_edit(
    activations: Activations | None = None, center: str = "off", options: EditOptions | None = None
) -> LayerEdit:
    activations = random_activations(60, SIZE) if activations is None else activations
    return build_layer_edit(SpectrumFitter(center).update(activations).spectrum(), options or EditOptions())


def some_edit(seed: int = 0, *, center: str = "off", normalization: str = "calibrated") -> LayerEdit:
    options = EditOptions(explained_variance=0.999, normalization=normalization)
    return layer_edit(random_activations(60, SIZE, seed=seed), center, options)


# Against the dense definition


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
    spectrum = SpectrumFitter("affine").update(activations).spectrum()
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
    ("values", "message"),
    [
        ({"explained_variance": 0.0}, "--explained-variance is 0.0: it must be above 0"),
        ({"explained_variance": 1.01}, "at most 1"),
        ({"explained_variance": math.nan}, "above 0 and at most 1"),
        ({"positive_variance": -0.5}, "--positive-variance"),
        ({"negative_variance": 2.0}, "--negative-variance"),
        ({"positive_rank": -1}, "--positive-rank is -1: it cannot be negative"),
        ({"negative_rank": -1}, "--negative-rank"),
        ({"projections": "neither"}, "--projections is 'neither': choose one of both"),
        ({"normalization": "batch"}, "--normalization is 'batch'"),
        ({"strength": math.inf}, "--strength is inf"),
        ({"strength": math.nan}, "--strength is nan"),
    ],
    ids=lambda value: "" if isinstance(value, str) else str(value),
)
def test_wrong_options_are_refused(values, message):
    with pytest.raises(InputError, match=message):
        EditOptions(**values)


@pytest.mark.parametrize("kind", ["positive", "negative"])
def test_a_rank_that_the_demonstrations_do_not_span_is_refused(kind):
    with pytest.raises(InputError, match=f"--{kind}-rank 10 is more than the 9 directions"):
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


# Folding into weights


def ulps(actual: Tensor, expected: Tensor) -> Tensor:
    """How many units in the last place of `actual`'s dtype lie between it and `expected` (float64), rounded."""
    rounded = expected.to(actual.dtype).double()
    exponent = torch.frexp(rounded).exponent - 1
    unit = torch.finfo(actual.dtype).eps * 2.0**exponent
    return (actual.double() - rounded).abs() / unit


def linear_writer(size: int = SIZE, *, bias: bool = False, output_dim: int = 0) -> Writer:
    weight = WriterWeight("block.down.weight", output_dim, "block.down.bias" if bias else None)
    return Writer(Target(0, "mlp"), "block", size, (weight,))


def module_and_parameters(kind: str, *, bias: bool) -> tuple[torch.nn.Module, Writer, dict[str, Tensor]]:
    torch.manual_seed(0)
    module = torch.nn.Linear(40, SIZE, bias=bias) if kind == "Linear" else Conv1D(SIZE, 40)
    torch.nn.init.normal_(module.weight)
    if bias:
        torch.nn.init.normal_(module.bias)
    writer = linear_writer(bias=bias, output_dim=0 if kind == "Linear" else 1)
    return module, writer, {f"block.down.{name}": value.detach() for name, value in module.named_parameters()}


@pytest.mark.parametrize("center", CENTERS)
@pytest.mark.parametrize(("kind", "bias"), [("Linear", False), ("Linear", True), ("Conv1D", True)])
def test_a_module_with_folded_parameters_gives_its_edited_output(kind, bias, center):
    module, writer, parameters = module_and_parameters(kind, bias=bias)
    edit = some_edit(center=center)
    folded = fold_parameters(writer, [edit], parameters)
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
    _, writer, parameters = module_and_parameters(kind, bias=True)
    parameters = {name: value.to(dtype) for name, value in parameters.items()}
    edits = [some_edit(0, center=center), some_edit(1, center=center)]
    folded = fold_parameters(writer, edits, parameters)
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
    """A second edit must act on the bias of the first, in float64, although the writer has none."""
    _, writer, parameters = module_and_parameters("Linear", bias=False)
    edits = [some_edit(seed, center="affine") for seed in range(3)]
    bias = torch.zeros(SIZE, dtype=torch.float64)
    for edit in edits:
        bias = dense_of(edit)(bias)
    folded = fold_parameters(writer, edits, parameters)["block.down.bias"]
    assert ulps(folded, bias).max() <= 1


@pytest.mark.parametrize("output_dim", [0, 1])
def test_a_weight_folded_in_blocks_is_the_same_weight(output_dim, monkeypatch):
    weight = torch.randn(SIZE, SIZE + 5).movedim(0, output_dim).contiguous()
    expected = fold_tensor(weight, [some_edit()], output_dim)
    monkeypatch.setattr("sea_export.architecture._FOLD_BLOCK", 4 * SIZE)
    blocked = fold_tensor(weight, [some_edit()], output_dim)
    torch.testing.assert_close(blocked, expected, rtol=1e-6, atol=1e-7)
    assert blocked.is_contiguous()


def test_folding_leaves_the_original_parameters_alone():
    _, writer, parameters = module_and_parameters("Linear", bias=True)
    before = {name: value.clone() for name, value in parameters.items()}
    fold_parameters(writer, [some_edit(center="affine")], parameters)
    assert all(torch.equal(parameters[name], value) for name, value in before.items())


@pytest.mark.parametrize("center", CENTERS)
def test_edits_are_folded_in_the_order_given(center):
    _, writer, parameters = module_and_parameters("Linear", bias=True)
    first, second = some_edit(0, center=center), some_edit(1, center=center)
    folded = fold_parameters(writer, [first, second], parameters)
    one_by_one = fold_parameters(writer, [second], fold_parameters(writer, [first], parameters))
    other_order = fold_parameters(writer, [second, first], parameters)
    for name in folded:
        torch.testing.assert_close(folded[name], one_by_one[name], rtol=1e-5, atol=1e-5)
        assert (folded[name] - other_order[name]).norm() > 0.01 * folded[name].norm()


# Application to a model


def spectral_edit(targets: list[Target], *, center: str = "off", size: int = SIZE) -> SpectralEdit:
    options = EditOptions(explained_variance=0.999, normalization="calibrated")
    edits = {
        target: (layer_edit(random_activations(60, size, seed=seed), center, options),)
        for seed, target in enumerate(targets)
    }
    return SpectralEdit(edits, provenance={"base": {"name": "org/tiny"}})


MLP_TARGETS = [Target(1, "mlp"), Target(3, "mlp")]
TARGET_SETS = {
    "mlp": MLP_TARGETS,
    "attention": [Target(1, "attention"), Target(2, "attention")],
    "both": [Target(1, "attention"), Target(1, "mlp"), Target(3, "mlp")],
}


def modules_of(model: PreTrainedModel, targets: Iterable[Target]) -> dict[Target, torch.nn.Module]:
    return {target: blocks_of(model, target.component)[target.layer] for target in targets}


class _Outputs:
    """Keeps the last output of some modules, as hooks that were there first (or last) see it."""

    def __init__(self, modules: dict[Target, torch.nn.Module]) -> None:
        self.seen: dict[Target, Tensor] = {}
        self.handles = [module.register_forward_hook(self._keep(target)) for target, module in modules.items()]

    def _keep(self, target):
        def hook(module, inputs, output):
            self.seen[target] = (output[0] if isinstance(output, tuple) else output).detach().clone()

        return hook

    def remove(self) -> None:
        for handle in self.handles:
            handle.remove()


@torch.inference_mode()
def logits_of(model: torch.nn.Module) -> Tensor:
    return model(TOKENS).logits


@pytest.mark.parametrize("center", CENTERS)
@pytest.mark.parametrize("targets", TARGET_SETS.values(), ids=TARGET_SETS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_under_an_edit_puts_out_the_edited_activations(family, targets, center):
    model, edit = tiny_model(family), spectral_edit(targets, center=center)
    base_logits, hooks = logits_of(model), hook_count(model)
    modules = modules_of(model, targets)
    raw = _Outputs(modules)
    with edit.apply(model) as applied:
        assert applied is model
        edited = _Outputs(modules)
        edited_logits = logits_of(model)
        edited.remove()
    raw.remove()
    assert raw.seen.keys() == edited.seen.keys() == set(targets)
    for target in targets:
        (layer,) = edit.layers[target]
        torch.testing.assert_close(
            edited.seen[target].double(), dense_of(layer)(raw.seen[target]), rtol=1e-4, atol=1e-4
        )
    assert (edited_logits - base_logits).abs().max() > 0.05
    assert torch.equal(logits_of(model), base_logits)
    assert hook_count(model) == hooks


def test_only_the_named_layers_are_edited(llama):
    """Before the first edited layer everything is as it was, exactly."""
    modules = modules_of(llama, [Target(layer, name) for layer in range(4) for name in ("attention", "mlp")])
    before = _Outputs(modules)
    logits_of(llama)
    before.remove()
    with spectral_edit([Target(2, "mlp")]).apply(llama):
        after = _Outputs(modules)
        logits_of(llama)
        after.remove()
    same = {target for target in modules if torch.equal(before.seen[target], after.seen[target])}
    assert same == {target for target in modules if target < Target(2, "mlp")}


@pytest.mark.parametrize("center", CENTERS)
def test_strength_zero_gives_exactly_the_base_logits(llama, center):
    layer = layer_edit(random_activations(60, SIZE), center, EditOptions(strength=0))
    with SpectralEdit(dict.fromkeys(MLP_TARGETS, (layer,))).apply(llama):
        edited = logits_of(llama)
    assert torch.equal(edited, logits_of(llama))


def test_the_edit_comes_off_after_an_exception(llama):
    base_logits, hooks = logits_of(llama), hook_count(llama)
    with pytest.raises(RuntimeError, match="stop"), spectral_edit(MLP_TARGETS).apply(llama):
        raise RuntimeError("stop")
    assert hook_count(llama) == hooks
    assert torch.equal(logits_of(llama), base_logits)


def test_a_half_precision_model_is_edited_in_its_own_dtype(llama):
    model = copy.deepcopy(llama).bfloat16()
    base_logits = logits_of(model)
    with spectral_edit(MLP_TARGETS).apply(model):
        edited = logits_of(model)
    assert edited.dtype == base_logits.dtype
    assert torch.isfinite(edited).all()
    assert not torch.equal(edited, base_logits)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (spectral_edit([Target(1, "mlp"), Target(4, "mlp")]), "layer 4 does not exist"),
        (spectral_edit([Target(1, "mlp")], size=16), "16 features but .*layers.1.mlp writes 24"),
    ],
    ids=["layer missing", "hidden size"],
)
def test_an_edit_of_another_model_is_refused_before_anything_is_installed(llama, edit, message):
    hooks = hook_count(llama)
    with pytest.raises(InputError, match=message), edit.apply(llama):
        pass
    assert hook_count(llama) == hooks


def test_an_edit_without_layers_is_refused():
    with pytest.raises(InputError, match="no layer"):
        SpectralEdit({})


# Composition


@pytest.mark.parametrize("center", CENTERS)
def test_composed_edits_are_applied_in_the_order_given(llama, center):
    one, other = spectral_edit([Target(1, "mlp")], center=center), spectral_edit([Target(0, "mlp"), Target(1, "mlp")])
    raw = _Outputs({Target(1, "mlp"): llama.model.layers[1].mlp})

    def edited(edit: SpectralEdit) -> Tensor:
        with edit.apply(llama):
            outputs = _Outputs({Target(1, "mlp"): llama.model.layers[1].mlp})
            logits_of(llama)
            outputs.remove()
        return outputs.seen[Target(1, "mlp")].double()

    forward = edited(compose([one, other]))
    expected = raw.seen[Target(1, "mlp")]
    for edit in (one, other):
        expected = dense_of(edit.layers[Target(1, "mlp")][0])(expected)
    torch.testing.assert_close(forward, expected, rtol=1e-4, atol=1e-4)
    assert (edited(compose([other, one])) - expected).norm() > 0.01 * expected.norm()
    raw.remove()


def test_composition_keeps_every_layer_and_where_each_edit_comes_from():
    one, other = spectral_edit([Target(1, "mlp")]), spectral_edit([Target(0, "mlp"), Target(1, "mlp")])
    both = compose([one, other])
    assert both.targets == (Target(0, "mlp"), Target(1, "mlp"))
    assert [len(both.layers[target]) for target in both.targets] == [1, 2]
    assert both.provenance["composed"] == [one.provenance, other.provenance]
    assert both.provenance["base"] == {"name": "org/tiny"}
    assert compose([one]) is one


def test_edits_of_different_hidden_sizes_do_not_compose():
    with pytest.raises(InputError, match=r"\[16, 24\]"):
        compose([spectral_edit(MLP_TARGETS), spectral_edit(MLP_TARGETS, size=16)])


# On disk


def assert_same_edit(one: SpectralEdit, other: SpectralEdit) -> None:
    assert one.targets == other.targets
    assert one.provenance == other.provenance
    for target in one.targets:
        assert len(one.layers[target]) == len(other.layers[target])
        for mine, theirs in zip(one.layers[target], other.layers[target], strict=True):
            for item in fields(LayerEdit):
                value, stored = getattr(mine, item.name), getattr(theirs, item.name)
                if isinstance(value, Tensor):
                    assert torch.equal(value, stored)
                    assert value.dtype == stored.dtype
                else:
                    assert value == stored
                    assert type(value) is type(stored)


@pytest.mark.parametrize("center", CENTERS)
def test_an_edit_comes_back_from_disk_exactly(tmp_path, center):
    edit = spectral_edit(TARGET_SETS["both"], center=center)
    edit.save(tmp_path / "new" / "edit")
    assert_same_edit(SpectralEdit.load(tmp_path / "new" / "edit"), edit)


@pytest.mark.parametrize("projections", PROJECTIONS)
def test_edits_with_empty_factors_come_back_from_disk(tmp_path, projections):
    options = EditOptions(positive_rank=0, projections=projections)
    edit = SpectralEdit({Target(0, "mlp"): (layer_edit(options=options),)})
    edit.save(tmp_path)
    assert_same_edit(SpectralEdit.load(tmp_path), edit)


def test_composed_edits_come_back_from_disk_even_with_themselves(tmp_path):
    edit = compose([spectral_edit(MLP_TARGETS), spectral_edit(MLP_TARGETS, center="affine")])
    edit.save(tmp_path / "two")
    assert_same_edit(SpectralEdit.load(tmp_path / "two"), edit)
    twice = compose([edit, edit])
    twice.save(tmp_path / "four")
    assert_same_edit(SpectralEdit.load(tmp_path / "four"), twice)


def test_the_same_edit_gives_the_same_bytes(tmp_path):
    for name in ("one", "other"):
        spectral_edit(TARGET_SETS["both"], center="linear").save(tmp_path / name)
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert files == ["sea_edit.json", "sea_edit.safetensors"]
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "other" / file).read_bytes()


def test_an_edit_is_found_inside_a_checkpoint(tmp_path):
    edit = spectral_edit(MLP_TARGETS)
    edit.save(tmp_path / "sea_edit")
    assert_same_edit(SpectralEdit.load(tmp_path), edit)


def test_a_loaded_edit_edits_as_the_saved_one(tmp_path, llama):
    edit = spectral_edit(MLP_TARGETS, center="linear")
    edit.save(tmp_path)
    with edit.apply(llama):
        expected = logits_of(llama)
    with SpectralEdit.load(tmp_path).apply(llama):
        torch.testing.assert_close(logits_of(llama), expected, rtol=1e-5, atol=1e-5)


def test_a_directory_without_an_edit_is_refused(tmp_path):
    with pytest.raises(InputError, match="holds no edit"):
        SpectralEdit.load(tmp_path)
    with pytest.raises(InputError, match="holds no edit"):
        SpectralEdit.load(tmp_path / "missing")


def _rewrite_json(directory, change):
    path = directory / "sea_edit.json"
    description = json.loads(path.read_text())
    path.write_text(json.dumps(change(description)))


def _rewrite_tensors(directory, change):
    path = directory / "sea_edit.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


DAMAGES = {
    "no tensors": lambda directory: (directory / "sea_edit.safetensors").unlink(),
    "tensors cut short": lambda directory: (directory / "sea_edit.safetensors").write_bytes(
        (directory / "sea_edit.safetensors").read_bytes()[:-100]
    ),
    "tensors empty": lambda directory: (directory / "sea_edit.safetensors").write_bytes(b""),
    "no JSON": lambda directory: (directory / "sea_edit.json").write_text("{"),
    "not UTF-8": lambda directory: (directory / "sea_edit.json").write_bytes(b"\xff\xfe\x00"),
    "JSON list": lambda directory: (directory / "sea_edit.json").write_text("[]"),
    "later format": lambda directory: _rewrite_json(directory, lambda text: text | {"format_version": 99}),
    "no provenance": lambda directory: _rewrite_json(directory, lambda text: text.pop("provenance") and text),
    "layers a list": lambda directory: _rewrite_json(directory, lambda text: text | {"layers": ["1.mlp"]}),
    "no layers": lambda directory: _rewrite_json(directory, lambda text: text | {"layers": {}}),
    "layer without edits": lambda directory: _rewrite_json(directory, lambda text: text | {"layers": {"1.mlp": []}}),
    "unknown component": lambda directory: _rewrite_json(
        directory, lambda text: text | {"layers": {"1.norm": text["layers"]["1.mlp"]}}
    ),
    "layer without tensors": lambda directory: _rewrite_json(
        directory, lambda text: text | {"layers": {"2.mlp": text["layers"]["1.mlp"]}}
    ),
    "number missing": lambda directory: _rewrite_json(
        directory, lambda text: text["layers"]["1.mlp"][0].pop("strength") and text
    ),
    "tensor missing": lambda directory: _rewrite_tensors(directory, lambda tensors: tensors.pop("1.mlp.0.positive")),
    "tensor unknown": lambda directory: _rewrite_tensors(
        directory, lambda tensors: tensors.update({"1.mlp.0.extra": torch.zeros(2)})
    ),
    "tensor of another size": lambda directory: _rewrite_tensors(
        directory, lambda tensors: tensors.update({"1.mlp.0.scale": torch.ones(SIZE - 1)})
    ),
    "tensor of another rank": lambda directory: _rewrite_tensors(
        directory, lambda tensors: tensors.update({"1.mlp.0.positive": torch.ones(SIZE)})
    ),
    "NaN in a tensor": lambda directory: _rewrite_tensors(
        directory, lambda tensors: tensors["1.mlp.0.positive"].fill_(float("nan"))
    ),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_edit_is_refused(tmp_path, damage):
    spectral_edit(MLP_TARGETS).save(tmp_path)
    SpectralEdit.load(tmp_path)
    damage(tmp_path)
    with pytest.raises(InputError):
        SpectralEdit.load(tmp_path)


@pytest.mark.parametrize("text", ["mlp", "1", "1.norm", "a.mlp", "1.2.mlp", ""])
def test_a_target_is_read_from_its_own_spelling_alone(text):
    assert Target.parse(str(Target(12, "attention"))) == Target(12, "attention")
    with pytest.raises(ValueError):  # noqa: PT011 (the message is for whoever damaged the file)
        Target.parse(text)
