"""Edits fitted on made-up activations, for the hidden size of the tiny models."""

from __future__ import annotations

from dataclasses import replace

import torch

from sea_export.capture.activations import Activations
from sea_export.edit.layer_edit import LayerEdit
from sea_export.edit.spectral_edit import SpectralEdit
from sea_export.export.weight_fold_check import random_change
from sea_export.fitting.spectrum import SpectrumFitter
from sea_export.fitting.truncate import build_layer_edit
from sea_export.model.targets import Target
from sea_export.options import EditOptions
from tests.helpers.reference import random_activations

SIZE = 24


def layer_edit(
    activations: Activations | None = None, center: str = "off", options: EditOptions | None = None
) -> LayerEdit:
    activations = random_activations(60, SIZE) if activations is None else activations
    return build_layer_edit(SpectrumFitter(center).update(activations).finish(), options or EditOptions())


def some_edit(seed: int = 0, *, center: str = "off", normalization: str = "calibrated") -> LayerEdit:
    options = EditOptions(explained_variance=0.999, normalization=normalization)
    return layer_edit(random_activations(60, SIZE, seed=seed), center, options)


def spectral_edit(
    targets: list[Target], *, center: str = "off", size: int = SIZE, normalization: str = "calibrated"
) -> SpectralEdit:
    options = EditOptions(explained_variance=0.999, normalization=normalization)
    edits = {
        target: (layer_edit(random_activations(60, size, seed=seed), center, options),)
        for seed, target in enumerate(targets)
    }
    return SpectralEdit(edits, provenance={"base": {"name": "org/tiny"}})


def constant_edit(targets: list[Target], *, size: int = SIZE) -> SpectralEdit:
    """An edit that adds a constant to each target, and nothing else."""
    generator = torch.Generator().manual_seed(0)
    nothing = torch.zeros(size, 0)
    edits = {
        target: (
            replace(
                layer_edit(random_activations(60, size)),
                positive=nothing,
                negative=nothing,
                scale=None,
                shift=torch.randn(size, generator=generator),
            ),
        )
        for target in targets
    }
    return SpectralEdit(edits, provenance={"base": {"name": "org/tiny"}})


def weight_edit() -> SpectralEdit:
    """Changes of some weights of the tiny `llama`: one of low rank, one with scaled rows, and a product of two."""
    generator = torch.Generator().manual_seed(0)
    plain, scaled = (
        replace(
            random_change(SIZE, SIZE, generator), layer=layer, scale=None if layer == 1 else torch.full((SIZE,), 1.5)
        )
        for layer in (1, 3)
    )
    names = [f"model.layers.{layer}.self_attn.o_proj" for layer in (1, 3)]
    query = replace(random_change(SIZE, SIZE, generator), layer=1, relative_change=0.5)
    changes = {names[0]: [plain], names[1]: [scaled], "model.layers.1.self_attn.q_proj": [query, plain]}
    return SpectralEdit({}, provenance={"base": {"name": "org/tiny"}}, weight_changes=changes)


MLP_TARGETS = [Target(1, "mlp"), Target(3, "mlp")]
TARGET_SETS = {
    "mlp": MLP_TARGETS,
    "attention": [Target(1, "attention"), Target(2, "attention")],
    "both": [Target(1, "attention"), Target(1, "mlp"), Target(3, "mlp")],
}
