"""Weight changes of an edit on disk, for reading: their names, numbers and shapes, checked before they are loaded.

They stand beside the layer edits (`sea_export.edit.stored_edit`): numbers under `weight_changes` in the description,
and tensors under names that begin with `weight.`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sea_export.edit.summary import WeightSummary
from sea_export.model.safetensors_header import StoredTensor

__all__ = [
    "StoredWeightChange",
    "check_change_numbers",
    "check_change_shapes",
    "check_changes",
    "stored_changes",
    "tensor_prefix",
]

_MOST_LAYERS = 1_000_000
_LARGEST_NUMBER = 3e38  # no infinity in float32
_FACTORS = ("left", "right")
_TENSORS = (*_FACTORS, "scale")
_NUMBERS = ("strength", "layer", "relative_change")


@dataclass(frozen=True)
class StoredWeightChange:
    """A change of the weight of one linear map, as it is stored.

    Attributes:
        numbers: the fields of `sea_export.edit.weight_change.WeightChange` that are numbers.
        arrays: its tensors, float32; a scale that is None is missing.
    """

    numbers: Mapping[str, Any]
    arrays: Mapping[str, NDArray[np.float32]]

    def summary(self, module: str) -> WeightSummary:
        """What is told about it.

        Args:
            module: the name of the linear map in the model.
        """
        change, strength = self.numbers["relative_change"], self.numbers["strength"]
        return WeightSummary(
            module=module,
            layer=self.numbers["layer"],
            rank=self.arrays["left"].shape[1],
            scaled_rows="scale" in self.arrays,
            strength=strength,
            relative_change=None if change is None else change * abs(strength),
        )


def tensor_prefix(module: str, position: int) -> str:
    """What the names of the tensors of a change begin with.

    Args:
        module: the name of the linear map in the model.
        position: which change of its weight it is.
    """
    return f"weight.{module}.{position}."


def check_changes(changes: object) -> None:
    """Raises ValueError, with the reason, if this does not describe weight changes.

    Args:
        changes: name of a linear map -> a list with the numbers of each change of its weight.
    """
    if not isinstance(changes, dict):
        raise ValueError("its weight_changes are not an object")
    for module, own in changes.items():
        if not re.fullmatch(r"\w+(\.\w+)*", module, re.ASCII):
            raise ValueError(f"{module!r} is not the name of a module")
        if not isinstance(own, list) or not own:
            raise ValueError(f"{module} is not a list of changes")
        for numbers in own:
            check_change_numbers(numbers, module)
        if len({numbers["layer"] for numbers in own}) > 1:
            raise ValueError(f"{module} is in several layers")


def check_change_numbers(numbers: object, module: str) -> None:
    """Raises ValueError, with the reason, if these are not the numbers of a weight change.

    Args:
        numbers: what the description of an edit has, or will have, for one change.
        module: the name of the linear map, for messages.
    """
    if not isinstance(numbers, dict) or set(numbers) != set(_NUMBERS):
        raise ValueError(f"a change of {module} has not exactly the entries {', '.join(_NUMBERS)}")
    layer, change = numbers["layer"], numbers["relative_change"]
    if layer is not None and (type(layer) is not int or not 0 <= layer < _MOST_LAYERS):
        raise ValueError(f"the layer of {module} is not a number of a layer")
    if not _is_number(numbers["strength"]) or not (change is None or (_is_number(change) and change >= 0)):
        raise ValueError(f"a number of {module} is not finite")


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= _LARGEST_NUMBER


def check_change_shapes(changes: Mapping[str, Sequence[object]], stored: MutableMapping[str, StoredTensor]) -> None:
    """Takes the tensors of all changes out of those that a file holds.

    Args:
        changes: those of the description.
        stored: the tensors of the file by name.

    Raises:
        ValueError: a tensor is missing or not stored in float32, or shapes do not fit.
    """
    for module, own in changes.items():
        shapes_of_module = set()
        for prefix in (tensor_prefix(module, position) for position in range(len(own))):
            found = {name: stored.pop(prefix + name, None) for name in _TENSORS}
            if missing := [name for name in _FACTORS if found[name] is None]:
                raise ValueError(f"there is no tensor {prefix}{missing[0]}")
            tensors = {name: tensor for name, tensor in found.items() if tensor is not None}
            if {tensor.stored_as for tensor in tensors.values()} != {"F32"}:
                raise ValueError(f"a tensor of {prefix[:-1]} is not stored in float32")
            shapes = {name: tensor.shape for name, tensor in tensors.items()}
            if not _fit(**shapes):
                raise ValueError(f"the tensors of {prefix[:-1]} do not fit one another")
            shapes_of_module.add((shapes["left"][0], shapes["right"][1]))
        if len(shapes_of_module) > 1:
            raise ValueError(f"the changes of {module} are of weights of different shapes")


def _fit(left: tuple[int, ...], right: tuple[int, ...], scale: tuple[int, ...] | None = None) -> bool:
    """Whether these are the shapes of one change: (out, r), (r, in) and (out,), none of them empty."""
    if len(left) != 2 or len(right) != 2 or left[1] != right[0] or not all((*left, *right)):
        return False
    return scale is None or scale == left[:1]


def stored_changes(
    changes: Mapping[str, Sequence[Mapping[str, Any]]], arrays: Mapping[str, NDArray[np.float32]]
) -> Iterator[tuple[str, tuple[StoredWeightChange, ...]]]:
    """The changes of each linear map.

    Args:
        changes: those of the description, which were checked.
        arrays: all tensors of the file.

    Raises:
        ValueError: a tensor is not finite.
    """
    for module, own in changes.items():
        read = []
        for position, numbers in enumerate(own):
            prefix = tensor_prefix(module, position)
            tensors = {name: arrays[prefix + name] for name in _TENSORS if prefix + name in arrays}
            if not all(np.isfinite(array).all() for array in tensors.values()):
                raise ValueError(f"a tensor of {prefix[:-1]} is not finite")
            floats = {name: one if name == "layer" or one is None else float(one) for name, one in numbers.items()}
            read.append(StoredWeightChange(floats, tensors))
        yield module, tuple(read)
