"""From a spectrum to the edit of a layer: truncation, strength and normalization."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from sea_export.edit.layer_edit import LayerEdit
from sea_export.errors import InputError
from sea_export.fitting.spectrum import LayerSpectrum, rank_for_variance
from sea_export.options import RUN_TIME_NORMALIZATIONS, EditOptions

__all__ = ["build_layer_edit"]


# Norms below this share of the largest one are rounding: they come from squares, whose precision is 2e-16.
_ROUNDING = 1e-7


def build_layer_edit(spectrum: LayerSpectrum, options: EditOptions) -> LayerEdit:
    """Truncates a spectrum to an edit, in float64, rounded once to float32.

    `average` divides the edited activations by 2ˢ. `calibrated` scales feature j by ‖H0 e_j‖ / ‖edited H0 e_j‖ over the
    demonstrations, or by 1 where either norm is zero to rounding. H0 is centred where the spectrum is.

    Args:
        spectrum: the layer's spectrum.
        options: truncation, projections, strength and normalization.

    Raises:
        InputError: the spectrum does not have the rank that is asked for, or float32 cannot hold the edit. The caller
            knows the target, and puts its name in front of the message.
    """
    positive = _truncate(spectrum.positive_vectors, spectrum.positive_values, "positive", options)
    negative = _truncate(spectrum.negative_vectors, spectrum.negative_values, "negative", options)
    positive_values, negative_values = spectrum.positive_values, spectrum.negative_values
    if options.projections == "reversed":
        positive, negative = negative, positive
        positive_values, negative_values = negative_values, positive_values
    identity = 1.0
    if options.projections == "positive":
        identity, negative = 1.0 - options.strength, negative[:, :0]
    elif options.projections == "negative":
        positive = positive[:, :0]

    edit = LayerEdit(
        positive=positive,
        negative=negative,
        identity=identity,
        strength=options.strength,
        scale=None,
        shift=None,
        reader=None,
        positive_values=positive_values,
        negative_values=negative_values,
        relative_change=0.0,
        signature=spectrum.signature,
        reader_error=spectrum.reader_error,
        feature_function=spectrum.feature.name,
        length_scale=spectrum.feature.length_scale,
        projections="both" if options.projections == "reversed" else options.projections,
        normalization=options.normalization if options.normalization in RUN_TIME_NORMALIZATIONS else "none",
    )
    neutral = spectrum.neutral_factor if spectrum.neutral is None else spectrum.neutral
    if options.normalization == "average":
        edit = replace(edit, scale=torch.full_like(spectrum.neutral_mean, 2.0).pow(-options.strength))
    elif options.normalization == "calibrated":
        before, after = neutral.norm(dim=0), edit.transform(neutral).norm(dim=0)
        floor = _ROUNDING * before.max()
        ratio = torch.where((before > floor) & (after > floor), before / after, 1.0)
        edit = replace(edit, scale=ratio)

    change = (edit.transform(neutral) - neutral).norm()
    energy = neutral.square().sum()
    if spectrum.center != "off":
        energy = energy + spectrum.count * spectrum.neutral_mean.square().sum()
        shift = spectrum.neutral_mean - edit.linear(spectrum.neutral_mean)
        edit = replace(edit, shift=shift, reader=spectrum.reader)
    relative_change = float(change / energy.sqrt()) if energy > 0 else 0.0
    edit = replace(edit, relative_change=relative_change)
    edit = edit.map_tensors(lambda tensor: tensor.float().contiguous().cpu())
    largest = max(abs(options.strength), relative_change)
    if not (largest < torch.finfo(torch.float32).max and edit.is_finite):
        raise InputError(
            f"--strength: {options.strength:g} with activations of up to {float(neutral.abs().max()):.1e} gives values "
            "that float32 cannot hold. Lower it, or leave this layer out."
        )
    return edit


def _truncate(vectors: Tensor, values: Tensor, kind: str, options: EditOptions) -> Tensor:
    rank = getattr(options, f"{kind}_rank")
    if rank is None:
        rank = rank_for_variance(values, options.variance(kind))
    elif rank > values.numel():
        raise InputError(
            f"--{kind}-rank: {rank} is more than the {values.numel()} directions that the demonstrations span. Lower "
            "it, or give more demonstrations."
        )
    return vectors[:, :rank]
