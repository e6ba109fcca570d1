"""From an edit to the stored tensors that hold it: what merging changes, worked out before any write."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sea_export.architecture import Writer, find_writers
from sea_export.bias_switch import bias_switch
from sea_export.edit import LayerEdit, SpectralEdit, Target
from sea_export.errors import InputError, SeaExportError
from sea_export.fold import fold_bias, fold_tensor
from sea_export.loading import check_size, skeleton
from sea_export.proof import prove_fold
from sea_export.stored_layout import StoredLayout, StoredParameter, stored_layout

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

    from sea_export.checkpoint import Checkpoint

__all__ = ["MergePlan", "StoredWriters", "find_stored_writers", "plan_merge"]

_FOLDABLE = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class StoredWriters:
    """The writers of some targets, proved, and where a checkpoint stores their parameters."""

    model: PreTrainedModel
    """The base's skeleton."""
    writers: tuple[Writer, ...]
    parameters: Mapping[str, StoredParameter]
    """Every parameter that a fold rewrites, by its name in the model. None for a quantized base."""
    new_biases: Mapping[str, Tensor]
    """Biases (on `meta`, by stored name) that `config_changes` bring, for edits that need them."""
    bias_names: Mapping[str, str]
    """Name in the model -> name in the checkpoint, of those biases of the writers that are new."""
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
            "choose --format adapter or custom-code, or merge into plain weights with --dequantize"
        )
    model = skeleton(config, trust_remote_code=trust_remote_code)
    check_size(model, checkpoint)
    writers = tuple(find_writers(model, targets))
    prove_fold(model, writers, needs_bias=needs_bias)
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
        return StoredWriters(model, writers, parameters, {}, {}, {})
    return _with_new_biases(StoredWriters(model, writers, parameters, {}, {}, {}), without_bias, layout, config)


def _with_new_biases(
    stored: StoredWriters, without_bias: Sequence[Writer], layout: StoredLayout, config: PretrainedConfig
) -> StoredWriters:
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
