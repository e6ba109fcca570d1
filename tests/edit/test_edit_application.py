"""A live model under an edit puts out edited activations, and is what it was when the edit is taken off."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from sea_export.edit.spectral_edit import SpectralEdit, compose
from sea_export.errors import InputError
from sea_export.model.targets import Target
from sea_export.options import CENTERS, EditOptions
from tests.helpers.messages import naming
from tests.helpers.reference import dense_of, random_activations
from tests.helpers.tiny_edits import MLP_TARGETS, SIZE, TARGET_SETS, layer_edit, spectral_edit
from tests.helpers.tiny_models import blocks_of, family_parameters, hook_count, tiny_model

TOKENS = torch.tensor([[5, 40, 7, 99, 300, 12, 6]])


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
@pytest.mark.parametrize("family", family_parameters())
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
    ("edit", "facts"),
    [
        (spectral_edit([Target(1, "mlp"), Target(4, "mlp")]), ["layer 4"]),
        (spectral_edit([Target(1, "mlp")], size=16), ["model.layers.1.mlp", 16, 24]),
    ],
    ids=["layer missing", "hidden size"],
)
def test_an_edit_of_another_model_is_refused_before_anything_is_installed(llama, edit, facts):
    hooks = hook_count(llama)
    with pytest.raises(InputError, match=naming(*facts)), edit.apply(llama):
        pass
    assert hook_count(llama) == hooks


def test_an_edit_without_layers_is_refused():
    with pytest.raises(InputError, match="layer"):
        SpectralEdit({})


# Strength


@pytest.mark.parametrize("projections", ["both", "positive", "negative"])
@pytest.mark.parametrize("center", CENTERS)
def test_an_edit_at_another_strength_is_that_of_a_fit_with_it(llama, center, projections):
    activations = random_activations(60, SIZE)

    def fitted(strength: float) -> SpectralEdit:
        layer = layer_edit(activations, center, EditOptions(strength=strength, projections=projections))
        return SpectralEdit(dict.fromkeys(MLP_TARGETS, (layer,)))

    expected = fitted(0.3)
    for edit in (fitted(0.6).with_strength(0.3), fitted(0.6) * 0.5, 0.5 * fitted(0.6)):
        for target in MLP_TARGETS:
            (one,), (other,) = edit.layers[target], expected.layers[target]
            torch.testing.assert_close(one.apply(activations.neutral), other.apply(activations.neutral))
            assert one.relative_change == pytest.approx(other.relative_change)
    with expected.apply(llama):
        logits = logits_of(llama)
    with fitted(0.6).apply(llama, strength=0.3):
        torch.testing.assert_close(logits_of(llama), logits, rtol=1e-4, atol=1e-4)


def test_each_edit_of_a_product_gets_the_strength():
    layer = layer_edit(options=EditOptions(strength=0.8))
    product = compose([SpectralEdit({MLP_TARGETS[0]: (layer,)}), SpectralEdit({MLP_TARGETS[0]: (layer, layer)})])
    assert [one.strength for one in (product * 0.5).layers[MLP_TARGETS[0]]] == [0.4] * 3
    assert [one.strength for one in product.with_strength(0.1).layers[MLP_TARGETS[0]]] == [0.1] * 3


def test_what_was_measured_does_not_hold_at_another_strength():
    fit = {"options": {"edit": {"strength": 0.8}}, "effect": {"held_out": 1}, "base": {"name": "org/tiny"}}
    layer = layer_edit(options=EditOptions(strength=0.8))
    edit = SpectralEdit({MLP_TARGETS[0]: (layer,)}, fit)
    scaled = (edit * 0.5).with_strength(0.2)
    assert scaled.provenance == {
        "options": {"edit": {"strength": 0.2}},
        "fitted_strength": 0.8,
        "base": {"name": "org/tiny"},
    }
    assert fit["options"] == {"edit": {"strength": 0.8}}
    both = compose([edit, edit]) * 0.5
    assert [one["options"]["edit"]["strength"] for one in both.provenance["composed"]] == [0.4, 0.4]
    assert all("effect" not in one for one in both.provenance["composed"])


def test_some_layers_of_an_edit(llama):
    fit = {"options": {"edit": {"strength": 1.0}}, "effect": {"held_out": 1}, "base": {"name": "org/tiny"}}
    edit = SpectralEdit(spectral_edit(MLP_TARGETS, normalization="none").layers, provenance=fit)
    part = edit.only((3, 7))
    assert part.targets == (MLP_TARGETS[1],)
    assert part.layers[MLP_TARGETS[1]] is edit.layers[MLP_TARGETS[1]]
    assert part.provenance == {"options": fit["options"], "base": fit["base"], "targets": ["3.mlp"]}
    assert edit.only((0, 1, 2, 3)) is edit
    assert part.with_strength(0.5).provenance["targets"] == ["3.mlp"]
    both = compose([edit, edit]).only((1,))
    assert both.provenance["targets"] == ["1.mlp"]
    with pytest.raises(InputError):
        edit.only((0,))
    ids = torch.arange(5, 15)[None]
    with torch.no_grad(), part.apply(llama):
        found = llama(ids).logits
    with torch.no_grad(), SpectralEdit({MLP_TARGETS[1]: edit.layers[MLP_TARGETS[1]]}).apply(llama):
        assert torch.equal(llama(ids).logits, found)


@pytest.mark.parametrize("strength", [math.nan, math.inf, 1e31])
def test_a_strength_out_of_range_is_refused(strength):
    edit = SpectralEdit({MLP_TARGETS[0]: (layer_edit(),)})
    with pytest.raises(InputError, match="out of range"):
        edit.with_strength(strength)


def test_an_edit_with_scales_keeps_its_strength():
    with pytest.raises(InputError, match="normalization"):
        spectral_edit(MLP_TARGETS) * 0.5


# What people see of an edit


def test_an_edit_is_shown_in_one_line_and_as_a_table():
    targets = [Target(layer, "mlp") for layer in (0, 1, 2, 5)] + [Target(3, "attention")]
    edit = spectral_edit(targets)
    text = repr(edit)
    assert "\n" not in text
    assert len(text) < 200
    assert all(
        fact in text for fact in ("mlp of layers 0-2, 5", "attention of layers 3", "hidden size 24", "strength 1")
    )
    assert edit._repr_html_().count("<tr>") == 1 + len(targets)


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


def test_edits_of_different_bases_do_not_compose():
    one, other = (
        SpectralEdit(spectral_edit(MLP_TARGETS).layers, {"base": {"name": "org/tiny", "weights": {"model": digest}}})
        for digest in ("a", "b")
    )
    with pytest.raises(InputError, match=naming("org/tiny")):
        compose([one, other])
    assert compose([one, one]).targets == one.targets


def test_edits_of_different_hidden_sizes_do_not_compose():
    with pytest.raises(InputError, match=naming(16, 24)):
        compose([spectral_edit(MLP_TARGETS), spectral_edit(MLP_TARGETS, size=16)])
