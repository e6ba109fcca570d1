"""Edits fitted on made-up activations, for the hidden size of the tiny models."""

from __future__ import annotations

from reference import random_activations

from sea_export.edit import LayerEdit, SpectralEdit, Target, build_layer_edit
from sea_export.options import EditOptions
from sea_export.spectral import Activations, SpectrumFitter

SIZE = 24


def layer_edit(
    activations: Activations | None = None, center: str = "off", options: EditOptions | None = None
) -> LayerEdit:
    activations = random_activations(60, SIZE) if activations is None else activations
    return build_layer_edit(SpectrumFitter(center).update(activations).spectrum(), options or EditOptions())


def some_edit(seed: int = 0, *, center: str = "off", normalization: str = "calibrated") -> LayerEdit:
    options = EditOptions(explained_variance=0.999, normalization=normalization)
    return layer_edit(random_activations(60, SIZE, seed=seed), center, options)


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
