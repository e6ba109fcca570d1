"""Where an edit is stored: the output projections of its targets, checked, and their tensors in a checkpoint."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sea_export.errors import InputError
from sea_export.export.fold_check import check_fold
from sea_export.export.stored_layout import StoredLayout, StoredParameter, stored_layout
from sea_export.model.architecture import OutputProjection, find_output_projections
from sea_export.model.bias_switch import bias_switch
from sea_export.model.load_model import check_size, skeleton
from sea_export.model.targets import Target

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

    from sea_export.model.checkpoint import Checkpoint

__all__ = ["StoredProjections", "find_stored_projections"]


_FOLDABLE = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class StoredProjections:
    """The writers of some targets, proved, and where a checkpoint stores their parameters."""

    model: PreTrainedModel
    """The base's skeleton."""
    writers: tuple[OutputProjection, ...]
    parameters: Mapping[str, StoredParameter]
    """Every parameter that a fold rewrites, by its name in the model. None for a quantized base."""
    new_biases: Mapping[str, Tensor]
    """Biases (on `meta`, by stored name) that `config_changes` bring, for edits that need them."""
    bias_names: Mapping[str, str]
    """Name in the model -> name in the checkpoint, of those biases of the writers that are new."""
    config_changes: Mapping[str, bool]


def find_stored_projections(
    targets: Iterable[Target],
    checkpoint: Checkpoint,
    config: PretrainedConfig,
    *,
    needs_bias: bool,
    format: str = "merged",
    trust_remote_code: bool = False,
) -> StoredProjections:
    """Finds the writers without loading the model, proves the fold, and finds their parameters on disk.

    Args:
        targets: the places to edit.
        checkpoint: the base.
        config: the base's config.
        needs_bias: whether the edit adds a constant (`center="affine"`).
        format: what the edit is to be baked into. An adapter needs no room for a constant in the checkpoint, and may
            have a quantized base: its parameters are then read from the model, and no stored name is given.
        trust_remote_code: whether code that comes with the base may run.

    Raises:
        InputError: the base is quantized, a writer is not found or not stored under a known name, or there is no
            place for a constant.
        SeaExportError: the fold could not be proved: see `sea_export.export.fold_check.check_fold`.
    """
    quantization = getattr(config, "quantization_config", None)
    if quantization and format == "merged":
        method = quantization.get("quant_method", "quantized") if isinstance(quantization, dict) else quantization
        raise InputError(
            f"the base is quantized ({method}), and folding into quantized weights would round the edit away: "
            "choose --format adapter or custom-code, or merge into plain weights with --dequantize"
        )
    model = skeleton(config, trust_remote_code=trust_remote_code)
    check_size(model, checkpoint)
    writers = tuple(find_output_projections(model, targets))
    check_fold(model, writers, needs_bias=needs_bias)
    layout = stored_layout(model, checkpoint)
    parameters: dict[str, StoredParameter] = {}
    for weight in () if quantization else (weight for writer in writers for weight in writer.weights):
        parameters[weight.name] = layout.find(weight.name, weight.output_dim)
        if weight.bias is not None:
            parameters[weight.bias] = layout.find(weight.bias, -1)
    for parameter in parameters.values():
        for part in parameter.parts:
            _check_foldable(part, checkpoint)
    without_bias = [writer for writer in writers if any(weight.bias is None for weight in writer.weights)]
    if not needs_bias or not without_bias or format != "merged":
        return StoredProjections(model, writers, parameters, {}, {}, {})
    return _with_new_biases(StoredProjections(model, writers, parameters, {}, {}, {}), without_bias, layout, config)


def _with_new_biases(
    stored: StoredProjections, without_bias: Sequence[OutputProjection], layout: StoredLayout, config: PretrainedConfig
) -> StoredProjections:
    """The same, with the biases that a config switch gives some writers."""
    config_changes, appearing = bias_switch(config, without_bias)
    names = {name: layout.new_bias_name(name) for name in appearing}
    return replace(
        stored,
        new_biases={names[name]: bias for name, bias in appearing.items()},
        bias_names=names,
        config_changes=config_changes,
    )


def _check_foldable(name: str, checkpoint: Checkpoint) -> None:
    dtype = checkpoint.tensors[name].dtype
    if dtype not in _FOLDABLE:
        raise InputError(
            f"{name} is stored as {str(dtype).removeprefix('torch.')}: a quantized weight cannot be folded; "
            "start from the unquantized model"
        )
