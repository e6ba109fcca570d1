"""From an edit to the stored tensors that hold it: what merging changes, worked out before any write."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sea_export.edit.fold import fold_bias, fold_tensor
from sea_export.edit.layer_edit import LayerEdit
from sea_export.edit.spectral_edit import SpectralEdit
from sea_export.errors import InputError, SeaExportError
from sea_export.export.stored_projections import StoredProjections

if TYPE_CHECKING:
    from sea_export.model.checkpoint import Checkpoint

__all__ = ["MergePlan", "plan_merge"]


@dataclass(frozen=True)
class MergePlan:
    """What merging an edit changes in a checkpoint, and nothing besides."""

    edits: Mapping[str, Callable[[Tensor], Tensor]]
    """Stored tensor -> the same with the edit folded in, by stored name."""
    additions: Mapping[str, Tensor]
    """New tensors: biases that an `affine` edit needs."""
    config_changes: Mapping[str, bool]
    """Config switches that make the architecture read them."""


def plan_merge(edit: SpectralEdit, stored: StoredProjections, checkpoint: Checkpoint) -> MergePlan:
    """Which stored tensors hold the edit, and how each is made.

    Args:
        edit: the edit to merge.
        stored: what `find_stored_projections` found for its targets.
        checkpoint: the base.

    Raises:
        InputError: the edit has another hidden size than the base.
    """
    edits: dict[str, Callable[[Tensor], Tensor]] = {}
    dtype = checkpoint.tensors[next(iter(stored.parameters.values())).parts[0]].dtype
    additions = {name: torch.zeros(bias.shape, dtype=dtype) for name, bias in stored.new_biases.items()}
    for writer in stored.writers:
        layers = edit.layers[writer.target]
        if layers[0].size != writer.size:
            raise InputError(
                f"the edit has {layers[0].size} features but {writer.module_name} writes {writer.size}: "
                "it was fitted on another model"
            )
        for weight in writer.weights:
            parameter = stored.parameters[weight.name]
            edits |= {part: _WeightFold(part, layers, parameter.output_dim) for part in parameter.parts}
            if weight.bias is not None:
                edits |= {part: _BiasFold(part, layers) for part in stored.parameters[weight.bias].parts}
            elif (bias := fold_bias(None, layers, dtype)) is not None:
                assert weight.bias_name is not None
                additions[stored.bias_names[weight.bias_name]] = bias
    return MergePlan(edits, additions, stored.config_changes)


@dataclass(frozen=True)
class _WeightFold:
    name: str
    edits: Sequence[LayerEdit]
    output_dim: int

    def __call__(self, stored: Tensor) -> Tensor:
        return _checked(self.name, stored, fold_tensor(stored, self.edits, self.output_dim))


@dataclass(frozen=True)
class _BiasFold:
    name: str
    edits: Sequence[LayerEdit]

    def __call__(self, stored: Tensor) -> Tensor:
        folded = fold_bias(stored, self.edits, stored.dtype)
        assert folded is not None
        return _checked(self.name, stored, folded)


def _checked(name: str, stored: Tensor, folded: Tensor) -> Tensor:
    """Raises SeaExportError if an edit has made values that the stored dtype cannot hold; a sum shows any of them."""
    if folded.sum(dtype=torch.float64).isfinite() or not stored.sum(dtype=torch.float64).isfinite():
        return folded
    dtype = str(folded.dtype).removeprefix("torch.")
    raise SeaExportError(
        f"{name} with the edit folded in has values beyond {torch.finfo(folded.dtype).max:g}, which {dtype} does not "
        "hold: lower --strength, choose another --normalization, or choose --format adapter or custom-code"
    )
