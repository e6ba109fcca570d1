"""From an edit to the stored tensors that hold it: what merging changes, worked out before any write."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sea_export.architecture import Writer, bias_switch, find_writers, skeleton, stored_name
from sea_export.edit import LayerEdit, SpectralEdit, Target
from sea_export.errors import InputError
from sea_export.fold import fold_bias, fold_tensor
from sea_export.proof import prove_fold

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from sea_export.checkpoint import Checkpoint

__all__ = ["MergePlan", "StoredWriters", "find_stored_writers", "plan_merge"]

_FOLDABLE = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class StoredWriters:
    """The writers of some targets, proved, and where a checkpoint stores their parameters."""

    writers: tuple[Writer, ...]
    stored_names: Mapping[str, str]
    """Name in the model -> name in the checkpoint, of every parameter that a fold rewrites."""
    new_biases: Mapping[str, Tensor]
    """Biases (on `meta`, by stored name) that `config_changes` bring, for edits that need them."""
    config_changes: Mapping[str, bool]


@dataclass(frozen=True)
class MergePlan:
    """What merging an edit changes in a checkpoint, and nothing besides."""

    edits: Mapping[str, Callable[[Tensor], Tensor]]
    """Stored tensor -> the same with the edit folded in, by stored name."""
    additions: Mapping[str, Tensor]
    """New tensors: biases that an `affine` edit needs."""
    config_changes: Mapping[str, bool]
    """Config switches that make the architecture read them."""


def find_stored_writers(
    targets: Iterable[Target],
    checkpoint: Checkpoint,
    config: PretrainedConfig,
    *,
    needs_bias: bool,
    format: str = "merged",
    trust_remote_code: bool = False,
) -> StoredWriters:
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
        SeaExportError: the fold could not be proved: see `sea_export.proof.prove_fold`.
    """
    quantization = getattr(config, "quantization_config", None)
    if quantization and format == "merged":
        method = quantization.get("quant_method", "quantized") if isinstance(quantization, dict) else quantization
        raise InputError(
            f"the base is quantized ({method}), and folding into quantized weights would round the edit away: "
            "choose --format adapter, or start from the unquantized model"
        )
    model = skeleton(config, trust_remote_code=trust_remote_code)
    writers = tuple(find_writers(model, targets))
    prove_fold(model, writers)
    stored_names: dict[str, str] = {}
    without_bias = []
    for writer in writers:
        if needs_bias and len(writer.weights) > 1:
            raise InputError(
                f"{writer.module_name} sums {len(writer.weights)} weighted experts, which cannot hold the constant "
                "of an affine edit: choose --center linear"
            )
        for weight in () if quantization else writer.weights:
            for name in filter(None, (weight.name, weight.bias)):
                stored_names[name] = stored_name(name, checkpoint.tensors, model)
                _check_foldable(stored_names[name], checkpoint)
        if writer.weights[0].bias is None:
            without_bias.append(writer)
    new_biases: dict[str, Tensor] = {}
    config_changes: dict[str, bool] = {}
    if needs_bias and without_bias and format == "merged":
        config_changes, appearing = bias_switch(config, without_bias)
        # The checkpoint may spell names with or without the base model's prefix, as it does for the weights.
        prefix = f"{model.base_model_prefix}."
        spelt = next(iter(stored_names.items()))
        for name, bias in appearing.items():
            new_biases[name if spelt[0] == spelt[1] else name.removeprefix(prefix)] = bias
        stored_names |= {
            bias: bias if spelt[0] == spelt[1] else bias.removeprefix(prefix)
            for bias in (f"{writer.weights[0].name.removesuffix('weight')}bias" for writer in without_bias)
        }
    return StoredWriters(writers, stored_names, new_biases, config_changes)


def _check_foldable(name: str, checkpoint: Checkpoint) -> None:
    dtype = checkpoint.tensors[name].dtype
    if dtype not in _FOLDABLE:
        raise InputError(
            f"{name} is stored as {str(dtype).removeprefix('torch.')}: a quantized weight cannot be folded; "
            "start from the unquantized model"
        )


def plan_merge(edit: SpectralEdit, stored: StoredWriters, checkpoint: Checkpoint) -> MergePlan:
    """Which stored tensors hold the edit, and how each is made.

    Args:
        edit: the edit to merge.
        stored: what `find_stored_writers` found for its targets.
        checkpoint: the base.

    Raises:
        InputError: the edit has another hidden size than the base.
    """
    edits: dict[str, Callable[[Tensor], Tensor]] = {}
    dtype = checkpoint.tensors[stored.stored_names[stored.writers[0].weights[0].name]].dtype
    additions = {name: torch.zeros(bias.shape, dtype=dtype) for name, bias in stored.new_biases.items()}
    for writer in stored.writers:
        layers = edit.layers[writer.target]
        if layers[0].size != writer.size:
            raise InputError(
                f"the edit has {layers[0].size} features but {writer.module_name} writes {writer.size}: "
                "it was fitted on another model"
            )
        for weight in writer.weights:
            edits[stored.stored_names[weight.name]] = _WeightFold(layers, weight.output_dim)
            if weight.bias is not None:
                edits[stored.stored_names[weight.bias]] = _BiasFold(layers)
            elif (bias := fold_bias(None, layers, dtype)) is not None:
                additions[stored.stored_names[f"{weight.name.removesuffix('weight')}bias"]] = bias
    return MergePlan(edits, additions, stored.config_changes)


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
