"""Where an edit is stored: the output projections of its targets, after their check, and their stored tensors."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sea_export.errors import InputError
from sea_export.export.fold_check import check_fold
from sea_export.export.stored_layout import StoredLayout, StoredParameter, stored_layout
from sea_export.export.weight_fold_check import check_weight_folds
from sea_export.model.architecture import OutputProjection, ProjectionWeight
from sea_export.model.base import Base
from sea_export.model.checkpoint import Checkpoint
from sea_export.model.linear_modules import find_linear_weights
from sea_export.model.quantized_storage import QuantizedWeight, check_requantizable, with_plain_weights
from sea_export.model.targets import COMPONENTS, Target
from sea_export.text import dtype_name

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["StoredProjections", "find_stored_projections"]

_FOLDABLE = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class StoredProjections:
    """The output projections of targets, after the numerical check, and where a checkpoint stores their parameters."""

    model: PreTrainedModel
    """The base's skeleton."""
    projections: tuple[OutputProjection, ...]
    layout: StoredLayout
    """All parameters that the checkpoint stores."""
    parameters: Mapping[str, StoredParameter]
    """Every parameter that a fold changes, by its name in the model; empty for a quantized base into which nothing is
    folded."""
    new_biases: Mapping[str, Tensor] = field(default_factory=dict)
    """The biases that `config_changes` add (on `meta`, by stored name), for edits that need them."""
    bias_names: Mapping[str, str] = field(default_factory=dict)
    """Name in the model -> name in the checkpoint, of those new biases."""
    config_changes: Mapping[str, Any] = field(default_factory=dict)
    """New values for entries of config.json: those that make the architecture read new biases, and others that the
    format adds."""
    quantized: Mapping[str, QuantizedWeight] = field(default_factory=dict)
    """The weights that are folded in their quantized storage, by their names among the parts of `parameters`."""
    weights: tuple[ProjectionWeight, ...] = ()
    """The weights that the edit changes by themselves. Where they are stored is among `parameters`, too."""


def find_stored_projections(
    targets: Iterable[Target],
    base: Base,
    *,
    needs_bias: bool,
    components: Collection[str] = COMPONENTS,
    quantized: Mapping[str, QuantizedWeight] | None = None,
    weights: Collection[str] = (),
) -> StoredProjections:
    """Finds the output projections of targets, checks the fold numerically, and finds their stored tensors.

    No weights are loaded. For a quantized base no stored tensors are searched for, unless it is to be folded in its own
    storage. Its parameters are then read from the model in memory.

    Args:
        targets: what is to be edited.
        base: the base.
        needs_bias: whether the edit adds a constant (`center="affine"`).
        components: the kinds of blocks to which it does.
        quantized: the weights of a quantized base that is to be folded in its own storage; None for any other one.
        weights: the linear maps whose weights are changed by themselves, by their names in the model.

    Raises:
        InputError: an output projection is not found or not stored under a known name, or the constant changes on its
            way to the output.
        SeaExportError: the numerical check of the fold failed. See `sea_export.export.fold_check.check_fold`.
    """
    model = base.skeleton
    projections = base.output_projections(targets)
    for biased in (False, True):
        own = [one for one in projections if (needs_bias and one.target.component in components) == biased]
        check_fold(model, own, needs_bias=biased)
    layout = stored_layout(model, with_plain_weights(base.checkpoint, quantized or {}))
    parameters: dict[str, StoredParameter] = {}
    unknown = base.is_quantized and quantized is None
    for weight in () if unknown else (weight for one in projections for weight in one.weights):
        parameters[weight.name] = layout.find(weight.name, weight.output_dim)
        if weight.bias is not None:
            parameters[weight.bias] = layout.find(weight.bias, -1)
    changed = find_linear_weights(model, weights)
    check_weight_folds(model, changed)
    for weight in () if unknown else changed:
        parameters[weight.name] = layout.find(weight.name, weight.output_dim)
    folded = {}
    for part in (part for parameter in parameters.values() for part in parameter.parts):
        if quantized is not None and part in quantized:
            check_requantizable(quantized[part], base.checkpoint)
            folded[part] = quantized[part]
        else:
            _check_foldable(part, base.checkpoint)
    return StoredProjections(model, projections, layout, parameters, quantized=folded, weights=changed)


def _check_foldable(name: str, checkpoint: Checkpoint) -> None:
    dtype = checkpoint.tensors[name].dtype
    if dtype not in _FOLDABLE:
        raise InputError(
            f"{name}: it is stored as {dtype_name(dtype)}, and a quantized weight cannot be folded. Start from the "
            "unquantized model."
        )
