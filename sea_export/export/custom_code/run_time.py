"""The edits of one target as the steps that exported code runs: their settings, and tensors in the layout it needs.

Linear edits that follow one another are multiplied to one step of the smallest rank that their product has. Directions
that an edit both keeps and drops cancel, and need no time when the model runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from sea_export.edit.factors import best_factors
from sea_export.edit.layer_edit import LayerEdit
from sea_export.edit.low_rank import LowRankEdit, low_rank_edit

__all__ = ["Step", "run_time_steps"]


@dataclass(frozen=True)
class Step:
    """One submodule of the exported model: `LinearEdit` or `FeatureEdit` in its code."""

    settings: dict[str, Any]
    """The arguments of the submodule, and its `kind`, as plain JSON data."""
    tensors: dict[str, Tensor]
    """Its float32 parameters by name."""


def run_time_steps(edits: Sequence[LayerEdit]) -> list[Step]:
    """The steps that compute some layer edits one after another.

    Args:
        edits: at least one, in the order in which they are applied.

    Raises:
        InputError: an edit has a scale of zero.
    """
    steps: list[Step] = []
    linear: list[LayerEdit] = []
    for edit in edits:
        if edit.feature.is_identity:
            linear.append(edit)
            if edit.normalization == "none":
                continue
        if linear:
            steps.append(_linear_step(low_rank_edit(linear), linear[-1].normalization))
            linear = []
        if not edit.feature.is_identity:
            steps.append(_feature_step(edit))
    if linear:
        steps.append(_linear_step(low_rank_edit(linear), "none"))
    return steps


def _linear_step(edit: LowRankEdit, normalization: str) -> Step:
    """h ↦ scale ∘ h + writeᵀ (read h) + shift."""
    factors = best_factors(edit.scale[:, None] * edit.left, edit.right, None)
    tensors = {"read": factors.a, "write": factors.b.T}
    scale = edit.scale * edit.identity
    if not scale.eq(1).all():
        tensors["scale"] = scale
    if edit.shift.any():
        tensors["shift"] = edit.shift
    settings = {
        "kind": "linear",
        "rank": len(factors.a),
        "scaled": "scale" in tensors,
        "shifted": "shift" in tensors,
        "normalization": normalization,
    }
    return Step(settings, _rounded(tensors))


def _feature_step(edit: LayerEdit) -> Step:
    tensors = {}
    if edit.projections != "negative":
        tensors["kept_directions"] = edit.positive.T
    if edit.projections != "positive":
        tensors["dropped_directions"] = edit.negative.T
    if edit.scale is not None:
        tensors["scale"] = edit.scale
    settings = {
        "kind": "features",
        "function": edit.feature_function,
        "length_scale": edit.length_scale,
        "kept": len(tensors["kept_directions"]) if "kept_directions" in tensors else None,
        "dropped": len(tensors["dropped_directions"]) if "dropped_directions" in tensors else None,
        "strength": edit.strength,
        "scaled": "scale" in tensors,
        "normalization": edit.normalization,
    }
    return Step(settings, _rounded(tensors))


def _rounded(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.float().contiguous() for name, tensor in tensors.items()}
