"""From an edit to the stored tensors that hold it: what merging changes, worked out before any write."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sea_export.architecture import (
    bias_switch,
    find_writers,
    fold_bias,
    fold_tensor,
    prove_fold,
    skeleton,
    stored_name,
)
from sea_export.edit import LayerEdit, SpectralEdit
from sea_export.errors import InputError

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from sea_export.checkpoint import Checkpoint

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


def plan_merge(
    edit: SpectralEdit, checkpoint: Checkpoint, config: PretrainedConfig, *, trust_remote_code: bool = False
) -> MergePlan:
    """Finds the writers, proves the fold, and says which stored tensors it changes.

    Args:
        edit: the edit to merge.
        checkpoint: the base.
        config: the base's config.
        trust_remote_code: whether code that comes with the base may run.

    Raises:
        InputError: the edit does not fit the base, a writer is not found or is stored in a way that cannot be
            folded, or the edit needs a bias that the architecture has no place for.
        SeaExportError: the fold could not be proved: see `sea_export.architecture.prove_fold`.
    """
    quantization = getattr(config, "quantization_config", None)
    if quantization:
        method = quantization.get("quant_method", "quantized") if isinstance(quantization, dict) else quantization
        raise InputError(
            f"the base is quantized ({method}), and folding into quantized weights would round the edit away: "
            "export with --format adapter or --format custom-code, or start from the unquantized model"
        )
    model = skeleton(config, trust_remote_code=trust_remote_code)
    writers = find_writers(model, edit.targets)
    for writer in writers:
        size = edit.layers[writer.target][0].size
        if size != writer.size:
            raise InputError(
                f"the edit has {size} features but {writer.module_name} writes {writer.size}: "
                "it was fitted on another model"
            )
    prove_fold(model, writers)
    edits: dict[str, Callable[[Tensor], Tensor]] = {}
    without_bias = []
    dtypes = {}
    for writer in writers:
        layers = edit.layers[writer.target]
        if len(writer.weights) > 1 and any(layer.needs_bias for layer in layers):
            raise InputError(
                f"{writer.module_name} sums {len(writer.weights)} weighted experts, which cannot hold the constant "
                "of an affine edit: choose --center linear"
            )
        for weight in writer.weights:
            name = stored_name(weight.name, checkpoint.tensors, model)
            dtypes[weight.name] = _foldable_dtype(name, checkpoint)
            edits[name] = _WeightFold(layers, weight.output_dim)
            if weight.bias is not None:
                edits[stored_name(weight.bias, checkpoint.tensors, model)] = _BiasFold(layers)
            elif any(layer.needs_bias for layer in layers):
                without_bias.append(writer)
    if not without_bias:
        return MergePlan(edits, {}, {})

    changes, appearing = bias_switch(config, without_bias)
    dtype = next(iter(dtypes.values()))
    additions = {name: torch.zeros(tensor.shape, dtype=dtype) for name, tensor in appearing.items()}
    for writer in without_bias:
        name = writer.weights[0].name
        folded = fold_bias(None, edit.layers[writer.target], dtypes[name])
        assert folded is not None
        additions[f"{name.removesuffix('weight')}bias"] = folded
    # The checkpoint may spell names without the base model's prefix, as it does for the weights.
    prefix_free = writers[0].weights[0].name not in checkpoint.tensors
    if prefix_free:
        additions = {name.removeprefix(f"{model.base_model_prefix}."): bias for name, bias in additions.items()}
    return MergePlan(edits, additions, changes)


def _foldable_dtype(name: str, checkpoint: Checkpoint) -> torch.dtype:
    dtype = checkpoint.tensors[name].dtype
    if dtype not in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        raise InputError(
            f"{name} is stored as {str(dtype).removeprefix('torch.')}: a quantized weight cannot be folded. "
            "Export with --format adapter or --format custom-code, or start from the unquantized model"
        )
    return dtype


@dataclass(frozen=True)
class _WeightFold:
    edits: Sequence[LayerEdit]
    output_dim: int

    def __call__(self, stored: Tensor) -> Tensor:
        return fold_tensor(stored, self.edits, self.output_dim)


@dataclass(frozen=True)
class _BiasFold:
    edits: Sequence[LayerEdit]

    def __call__(self, stored: Tensor) -> Tensor:
        folded = fold_bias(stored, self.edits, stored.dtype)
        assert folded is not None
        return folded
