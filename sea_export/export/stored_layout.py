"""Where a checkpoint stores the parameters of a model, and whether an edit can be folded into the stored tensors.

The rules by which transformers loads are used (`sea_export.model.stored_names`), so that every checkpoint that it loads
is understood: saved by release 4 or 5, with experts separate or stacked, with or without the base model's prefix.
"""

from __future__ import annotations

import copy
import importlib.util
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sea_export.edit.fold import fold_tensor
from sea_export.edit.layer_edit import LayerEdit
from sea_export.errors import InputError
from sea_export.export.fold_check import random_edit
from sea_export.model.checkpoint import Checkpoint
from sea_export.model.constant_place import NoPlaceForConstantError
from sea_export.model.stored_names import conversions_of, parameter_names

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["StoredLayout", "StoredParameter", "stored_layout"]

_TOLERANCE = 1e-5


@dataclass(frozen=True)
class StoredParameter:
    """A parameter of a model as a checkpoint stores it: in one tensor, or in several that loading joins."""

    name: str
    """Its name in the model."""
    parts: tuple[str, ...]
    """The names of the stored tensors."""
    output_dim: int
    """The dimension of every part that has the hidden size: -2 or -1."""
    shape: torch.Size
    """Its shape in the model."""
    source: _Source

    def read(self, checkpoint: Checkpoint) -> Tensor:
        """The parameter as the model has it, of shape `shape`, in the stored dtype."""
        return self.joined([checkpoint.read(part) for part in self.parts])

    def joined(self, parts: Sequence[Tensor]) -> Tensor:
        """The parameter as the model has it, of shape `shape`.

        Args:
            parts: one tensor for each of `parts`.
        """
        return self.source.convert(self.name, parts, self.shape)


@dataclass(frozen=True)
class StoredLayout:
    """The stored tensors from which transformers makes each parameter of a model."""

    model: PreTrainedModel
    checkpoint: Checkpoint
    sources: Mapping[str, _Source]
    """Name in the model -> its stored tensors, and how transformers converts them."""

    def find(self, name: str, output_dim: int) -> StoredParameter:
        """Where a parameter is stored.

        Args:
            name: the parameter's name in the model.
            output_dim: its dimension that has the hidden size: -2 or -1.

        Raises:
            InputError: the checkpoint does not store it, or stores it in a form into which no edit can be folded. This
                is checked numerically: folding before the conversion must give the same as folding after it.
        """
        parameter, source = self.model.get_parameter(name), self.sources.get(name)
        if source is None:
            raise InputError(
                f"{name}: the checkpoint stores no tensor of that name, and the edit must be folded into it. Give a "
                "checkpoint of a supported layout."
            )
        shapes = [self.checkpoint.tensors[part].shape for part in source.parts]
        size, found = parameter.shape[output_dim], None
        if source.makes(name, parameter.shape, shapes):
            found = next(
                (dim for dim in _dims_of(size, shapes) if source.commutes(name, parameter, output_dim, shapes[0], dim)),
                None,
            )
        if found is None:
            raise InputError(
                f"{name}: it is stored as {source.parts[0]} of shape {tuple(shapes[0])}, and transformers converts "
                "that in a way that no edit can be folded into. Choose --format custom-code."
            )
        return StoredParameter(name, source.parts, found, parameter.shape, source)

    def new_bias_name(self, name: str) -> str:
        """The name in the checkpoint of a bias that it does not have yet, made from the name of the weight beside it.

        Args:
            name: the name of the bias in the model.

        Raises:
            InputError: transformers converts that weight while it loads it.
        """
        source = self.sources.get(f"{name.removesuffix('bias')}weight")
        if source is None or source.converter is not None or not source.parts[0].endswith(".weight"):
            raise NoPlaceForConstantError(name, "the checkpoint has no name for it")
        return f"{source.parts[0].removesuffix('weight')}bias"


@dataclass(frozen=True)
class _Source:
    """The stored tensors of one parameter, and transformers' converter of them; None if it only renames them."""

    parts: tuple[str, ...]
    converter: Any = None
    pattern: str = ""
    config: Any = field(default=None, repr=False)

    def convert(self, name: str, tensors: Sequence[Tensor], shape: torch.Size) -> Tensor:
        """The parameter, made of its parts. `shape` is its shape in the model."""
        if self.converter is None:
            return tensors[0]
        converter = copy.deepcopy(self.converter)
        for part, tensor in zip(self.parts, tensors, strict=False):
            converter.add_tensor(name, part, self.pattern, tensor)
        model = SimpleNamespace(get_parameter=lambda _: SimpleNamespace(shape=shape))
        made = converter.convert(name, model=model, config=self.config)[name]
        return made[0] if isinstance(made, list) else made

    def makes(self, name: str, shape: torch.Size, shapes: Sequence[Sequence[int]]) -> bool:
        """Whether the parameter can be made from parts of these shapes."""
        if self.converter is None:
            return len(shapes) == 1 and tuple(shapes[0]) == tuple(shape)
        parts = [torch.empty(tuple(part), device="meta") for part in shapes]
        try:
            return self.convert(name, parts, shape).shape == shape
        # A conversion of wrong shapes can fail in any of these ways.
        except (AttributeError, KeyError, RuntimeError, TypeError, ValueError):
            return False

    def commutes(self, name: str, parameter: Tensor, output_dim: int, part: Sequence[int], dim: int) -> bool:
        """Whether folding into the parts along `dim` and converting them gives the same as converting and folding.

        It is checked on at most two random parts, which are narrow in all dimensions but the hidden size.
        """
        if self.converter is None:
            return dim == output_dim
        size = parameter.shape[output_dim]
        generator = torch.Generator().manual_seed(0)
        shape = torch.Size(_narrowed(parameter.shape, size))
        if len(self.parts) > 1:
            shape = torch.Size((min(2, len(self.parts)), *shape[1:]))
        parts = [torch.randn(_narrowed(part, size), generator=generator) for _ in self.parts[:2]]
        edits = [random_edit(size, generator)]
        folded = [_folded(tensor, edits, dim) for tensor in parts]
        made = self.convert(name, folded, shape)
        return torch.allclose(made, _folded(self.convert(name, parts, shape), edits, output_dim), atol=_TOLERANCE)


def _dims_of(size: int, shapes: Sequence[Sequence[int]]) -> list[int]:
    return [dim for dim in range(-min(2, len(shapes[0])), 0) if all(shape[dim] == size for shape in shapes)]


def _narrowed(shape: Sequence[int], size: int) -> list[int]:
    return [count if count == size else min(count, 2) for count in shape]


def _folded(tensor: Tensor, edits: Sequence[LayerEdit], dim: int) -> Tensor:
    """A weight or a bias with linear edits folded in along a dimension."""
    return fold_tensor(tensor, edits, dim) if tensor.ndim > 1 else fold_tensor(tensor[None], edits, dim)[0]


def stored_layout(model: PreTrainedModel, checkpoint: Checkpoint) -> StoredLayout:
    """The stored tensors from which transformers makes each parameter of a model, when it loads a checkpoint.

    Args:
        model: the model's skeleton.
        checkpoint: the checkpoint.
    """
    if importlib.util.find_spec("transformers.core_model_loading") is None:  # release 4 does not convert tensors
        return StoredLayout(model, checkpoint, _sources_of_release_4(model, checkpoint))
    from transformers.core_model_loading import WeightConverter

    converters = {
        pattern: entry
        for entry in conversions_of(model)
        if isinstance(entry, WeightConverter)
        for pattern in entry.source_patterns
    }
    sources: dict[str, _Source] = {}
    for stored, (name, pattern) in parameter_names(model, checkpoint).items():
        known = sources.get(name)
        if pattern is None:
            sources[name] = _Source((stored,))
        elif known is None or known.pattern != pattern:
            sources[name] = _Source((stored,), converters[pattern], pattern, model.config)
        else:
            sources[name] = _Source((*known.parts, stored), known.converter, pattern, model.config)
    return StoredLayout(model, checkpoint, sources)


def _sources_of_release_4(model: PreTrainedModel, checkpoint: Checkpoint) -> dict[str, _Source]:
    prefix = f"{model.base_model_prefix}."
    parameters = model.state_dict()
    sources = {}
    for stored in checkpoint.tensors:
        name = stored
        for pattern, replacement in (getattr(model, "_checkpoint_conversion_mapping", None) or {}).items():
            name, count = re.subn(pattern, replacement, name)
            if count:
                break
        for candidate in (name, prefix + name, name.removeprefix(prefix)):
            if candidate in parameters:
                sources[candidate] = _Source((stored,))
                break
    return sources
