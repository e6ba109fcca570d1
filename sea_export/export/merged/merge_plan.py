"""The plan of a merge: which stored tensors hold the edit, determined before anything is written."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from sea_export.edit.fold import bias_roundings, fold_bias, fold_tensor, tensor_roundings
from sea_export.edit.layer_edit import LayerEdit
from sea_export.edit.spectral_edit import SpectralEdit
from sea_export.edit.weight_change import WeightChange
from sea_export.edit.weight_fold import fold_changes, folded_roundings
from sea_export.errors import InputError
from sea_export.export.merged.requantized_fold import RequantizedFold
from sea_export.export.stored_layout import StoredParameter
from sea_export.export.stored_projections import StoredProjections
from sea_export.model.base import Base
from sea_export.model.bias_switch import bias_switch
from sea_export.model.quantization_methods import REQUANTIZABLE
from sea_export.model.targets import COMPONENTS, EMBEDDING
from sea_export.model.tied_head import tied_head

__all__ = ["Fold", "MergePlan", "check_unquantized", "plan_merge", "with_new_biases"]


class Fold(Protocol):
    """The fold of an edit into one stored tensor."""

    def __call__(self, stored: Tensor) -> Tensor:
        """The folded tensor.

        Args:
            stored: the stored one, which stays as it is.
        """

    def roundings(self, stored: Tensor) -> tuple[Tensor, Tensor]:
        """The lowest and the highest number that the fold may give on any processor.

        Args:
            stored: the stored tensor.
        """


@dataclass(frozen=True)
class MergePlan:
    """Everything that merging an edit changes in a checkpoint."""

    edits: Mapping[str, Fold]
    """Stored name of a tensor -> the fold of the edit into it."""
    additions: Mapping[str, Tensor]
    """New tensors by name: biases that an `affine` edit needs, and a head that shared the edited embedding."""
    config_changes: Mapping[str, Any]
    """New values for entries of config.json, such as those that make the architecture read them."""
    requantized: Mapping[str, RequantizedFold] = field(default_factory=dict)
    """Name of a quantized weight -> the fold of the edit into it, in its own storage."""
    parameters: Mapping[str, StoredParameter] = field(default_factory=dict)
    """The parameters that are made of such weights, by name in the model."""

    @property
    def requantized_tensors(self) -> Mapping[str, Callable[[Tensor], Tensor]]:
        """Stored name of a tensor of a quantized weight -> its edit."""
        return {name: edit for fold in self.requantized.values() for name, edit in fold.tensor_edits().items()}


def check_unquantized(base: Base) -> None:
    """Raises InputError for a quantized base, because nothing is folded into its weights unless that is asked for.

    Args:
        base: the base.
    """
    method = base.checkpoint.quantization_method
    if method is not None:
        requantize = ", or into its own storage with --requantize" if method in REQUANTIZABLE else ""
        raise InputError(
            f"{base.name}: it is quantized ({method}), and folding into quantized weights would round the edit. Choose "
            f"--format adapter or custom-code, or merge into plain weights with --dequantize{requantize}."
        )


def with_new_biases(
    stored: StoredProjections, base: Base, components: Collection[str] = COMPONENTS
) -> StoredProjections:
    """The same, with new biases for those output projections that have none, and the config entries that add them.

    Args:
        stored: what was found for the targets of an affine edit.
        base: the base.
        components: the kinds of blocks to which it adds a constant.

    Raises:
        InputError: the architecture has no such switch, or the checkpoint has no name for a new bias.
    """
    blocks = [one for one in stored.projections if one.target.component in components]
    without_bias = [one for one in blocks if any(weight.bias is None for weight in one.weights)]
    if not without_bias:
        return stored
    config_changes, appearing = bias_switch(stored.model, without_bias, trust_remote_code=base.trust_remote_code)
    names = {name: stored.layout.new_bias_name(name) for name in appearing}
    return replace(
        stored,
        new_biases={names[name]: bias for name, bias in appearing.items()},
        bias_names=names,
        config_changes=config_changes,
    )


def plan_merge(edit: SpectralEdit, stored: StoredProjections, base: Base) -> MergePlan:
    """The stored tensors that hold the edit, and how each of them is made.

    Args:
        edit: the edit to merge.
        stored: what was found for its targets.
        base: the base.

    Raises:
        InputError: the edit has another hidden size than the base, or a weight that it changes cannot be changed where
            it is stored.
    """
    edit.check_sizes(stored.projections)
    edits: dict[str, Fold] = dict(_weight_folds(edit, stored))
    requantized: dict[str, RequantizedFold] = {}
    dtype = _dtype_of(next(iter(stored.parameters.values())).parts[0], stored, base)
    additions = {name: torch.zeros(bias.shape, dtype=dtype) for name, bias in stored.new_biases.items()}
    for projection in stored.projections:
        layers = edit.layers[projection.target]
        for weight in projection.weights:
            parameter = stored.parameters[weight.name]
            for part in parameter.parts:
                if part in stored.quantized:
                    quantized = stored.quantized[part]
                    requantized[part] = RequantizedFold(quantized, base.checkpoint, layers, parameter.output_dim)
                else:
                    edits[part] = _WeightFold(layers, parameter.output_dim)
            if weight.bias is not None:
                edits |= dict.fromkeys(stored.parameters[weight.bias].parts, _BiasFold(layers))
            elif (bias := fold_bias(None, layers, _dtype_of(parameter.parts[0], stored, base))) is not None:
                assert weight.bias_name is not None
                additions[stored.bias_names[weight.bias_name]] = bias
    parameters = {
        name: parameter
        for name, parameter in stored.parameters.items()
        if any(part in requantized for part in parameter.parts)
    }
    untied, switched = _untied_head(stored, base)
    return MergePlan(edits, additions | untied, {**stored.config_changes, **switched}, requantized, parameters)


def _weight_folds(edit: SpectralEdit, stored: StoredProjections) -> Iterator[tuple[str, _ChangeFold]]:
    """The stored weights that are changed by themselves, each with its fold."""
    edit.weight_changes.check_shapes(stored.model)
    for weight in stored.weights:
        parameter, changes = stored.parameters[weight.name], edit.weight_changes[weight.module]
        part = parameter.parts[0]
        if not parameter.is_plain:
            raise InputError(
                f"{weight.name}: it is stored as {part}, which transformers converts, so that its change cannot be "
                "folded into what is stored. Choose --format adapter."
            )
        if part in stored.quantized:
            raise InputError(
                f"{weight.name}: it is stored quantized, and the change of a weight is not folded into that. Choose "
                "--dequantize instead of --requantize, or --format adapter."
            )
        yield part, _ChangeFold(changes, weight.output_dim)


def _untied_head(stored: StoredProjections, base: Base) -> tuple[dict[str, Tensor], dict[str, bool]]:
    """The weight of a head that loses the embedding that it shared, and the config entry that makes it its own."""
    embedding = next((one for one in stored.projections if one.target == EMBEDDING), None)
    head = None if embedding is None else tied_head(stored.model)
    if embedding is None or head is None:
        return {}, {}
    if stored.model.config.get_text_config(decoder=True) is not stored.model.config:
        raise InputError(
            f"{head}: it shares the weight of the embedding, which only a model without other parts can have changed. "
            "Leave the embedding out of the edit."
        )
    (part,) = stored.parameters[embedding.weights[0].name].parts
    untied = {} if head in base.checkpoint.tensors else {head: base.checkpoint.read(part)}
    return untied, {"tie_word_embeddings": False}


def _dtype_of(part: str, stored: StoredProjections, base: Base) -> torch.dtype:
    """The dtype of a bias beside a stored weight: that of the weight, or what a quantized one is computed in."""
    return base.dtype if part in stored.quantized else base.checkpoint.tensors[part].dtype


@dataclass(frozen=True)
class _WeightFold:
    edits: Sequence[LayerEdit]
    output_dim: int

    def __call__(self, stored: Tensor) -> Tensor:
        return fold_tensor(stored, self.edits, self.output_dim)

    def roundings(self, stored: Tensor) -> tuple[Tensor, Tensor]:
        return tensor_roundings(stored, self.edits, self.output_dim)


@dataclass(frozen=True)
class _ChangeFold:
    changes: Sequence[WeightChange]
    output_dim: int

    def __call__(self, stored: Tensor) -> Tensor:
        return fold_changes(stored, self.changes, self.output_dim)

    def roundings(self, stored: Tensor) -> tuple[Tensor, Tensor]:
        return folded_roundings(stored, self.changes, self.output_dim)


@dataclass(frozen=True)
class _BiasFold:
    edits: Sequence[LayerEdit]

    def __call__(self, stored: Tensor) -> Tensor:
        folded = fold_bias(stored, self.edits, stored.dtype)
        assert folded is not None
        return folded

    def roundings(self, stored: Tensor) -> tuple[Tensor, Tensor]:
        return bias_roundings(stored, self.edits)
