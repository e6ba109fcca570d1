"""Which tensors and entries of two GGUF models differ, and by how much."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sea_export.errors import SeaExportError
from sea_export.files.frames import data_frame
from sea_export.model.diff import TensorDifference
from sea_export.model.gguf_header import GgufTensor
from sea_export.model.gguf_parts import GgufPart, read_parts
from sea_export.model.gguf_values import read_pieces

if TYPE_CHECKING:
    from pandas import DataFrame

__all__ = ["GgufDifference", "compare_gguf", "same_bytes"]

_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class GgufDifference:
    """All differences of two models, a and b.

    Attributes:
        tensors_only_in_a: names, in the order of a.
        tensors_only_in_b: names, in the order of b.
        tensors_of_other_shape: name -> how a and b store it, where the shapes differ.
        tensors_changed: name -> how a and b store it, and how far b's values are from a's, where types or bytes differ.
        tensors_identical: the number of tensors that are the same, byte for byte.
        keys_only_in_a: keys of the metadata.
        keys_only_in_b: the same for b.
        keys_changed: keys in both whose values differ.
        keys_identical: the number of keys with the same values.
    """

    tensors_only_in_a: tuple[str, ...]
    tensors_only_in_b: tuple[str, ...]
    tensors_of_other_shape: Mapping[str, tuple[GgufTensor, GgufTensor]]
    tensors_changed: Mapping[str, tuple[GgufTensor, GgufTensor, TensorDifference]]
    tensors_identical: int
    keys_only_in_a: tuple[str, ...]
    keys_only_in_b: tuple[str, ...]
    keys_changed: tuple[str, ...]
    keys_identical: int

    @property
    def same_weights(self) -> bool:
        """Whether both hold the same tensors with the same bytes."""
        return not (
            self.tensors_only_in_a or self.tensors_only_in_b or self.tensors_of_other_shape or self.tensors_changed
        )

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain JSON data."""
        return {
            "kind": "gguf",
            "same_weights": self.same_weights,
            "tensors_changed": [
                {"name": name, **asdict(change), "type_in_a": a.type.name, "type_in_b": b.type.name}
                for name, (a, b, change) in self.tensors_changed.items()
            ],
            "tensors_of_other_form": [
                {"name": name, "a": _form(a), "b": _form(b)} for name, (a, b) in self.tensors_of_other_shape.items()
            ],
            "tensors_only_in_a": list(self.tensors_only_in_a),
            "tensors_only_in_b": list(self.tensors_only_in_b),
            "tensors_identical": self.tensors_identical,
            "keys_changed": list(self.keys_changed),
            "keys_only_in_a": list(self.keys_only_in_a),
            "keys_only_in_b": list(self.keys_only_in_b),
            "keys_identical": self.keys_identical,
        }

    def to_frame(self) -> DataFrame:
        """A row for each tensor that differs, as a data frame of pandas.

        Raises:
            InputError: pandas is not installed.
        """
        columns = ["name", "maximum", "relative", "type_in_a", "type_in_b"]
        return data_frame(self.to_dict()["tensors_changed"], columns)


def compare_gguf(a: Path, b: Path) -> GgufDifference:
    """Compare two GGUF models tensor by tensor, in little memory.

    Args:
        a: the only file of the first model, or the first of its parts.
        b: the same of the second.

    Raises:
        InputError: one of them is not a GGUF model, or has a tensor that the gguf package cannot read.
        SeaExportError: a file became shorter while it was read.
    """
    first, second = read_parts(a), read_parts(b)
    stored_a, stored_b = _tensors(first), _tensors(second)
    common = [name for name in stored_a if name in stored_b]
    pairs = {name: (stored_a[name], stored_b[name]) for name in common}
    other_shape = {name: pair for name, pair in pairs.items() if pair[0][1].shape != pair[1][1].shape}
    changed = {}
    for name, ((part_a, one), (part_b, other)) in pairs.items():
        if name not in other_shape and not (
            one.type == other.type and same_bytes(part_a.path, one, part_b.path, other)
        ):
            changed[name] = (one, other, _difference(part_a.path, one, part_b.path, other))
    entries_a = {entry.key: entry.data for entry in first[0].header.entries}
    entries_b = {entry.key: entry.data for entry in second[0].header.entries}
    shared = entries_a.keys() & entries_b.keys()
    keys_changed = tuple(key for key in entries_a if key in shared and entries_a[key] != entries_b[key])
    return GgufDifference(
        tensors_only_in_a=tuple(name for name in stored_a if name not in stored_b),
        tensors_only_in_b=tuple(name for name in stored_b if name not in stored_a),
        tensors_of_other_shape={name: (pair[0][1], pair[1][1]) for name, pair in other_shape.items()},
        tensors_changed=changed,
        tensors_identical=len(common) - len(other_shape) - len(changed),
        keys_only_in_a=tuple(key for key in entries_a if key not in shared),
        keys_only_in_b=tuple(key for key in entries_b if key not in shared),
        keys_changed=keys_changed,
        keys_identical=len(shared) - len(keys_changed),
    )


def same_bytes(path_a: Path, a: GgufTensor, path_b: Path, b: GgufTensor) -> bool:
    """Whether two tensors of one type and shape have the same bytes.

    Args:
        path_a: the file that holds the first.
        a: the first.
        path_b: the file that holds the second.
        b: the second.

    Raises:
        SeaExportError: a file became shorter while it was read.
    """
    with open(path_a, "rb") as stream_a, open(path_b, "rb") as stream_b:
        stream_a.seek(a.start)
        stream_b.seek(b.start)
        left = a.nbytes
        while left:
            count = min(left, _CHUNK_BYTES)
            pieces = stream_a.read(count), stream_b.read(count)
            if any(len(piece) != count for piece in pieces):
                raise SeaExportError(
                    f"{a.name}: a file that holds it became shorter while it was compared. Make sure that nothing "
                    "writes to it."
                )
            if pieces[0] != pieces[1]:
                return False
            left -= count
    return True


def _form(tensor: GgufTensor) -> dict[str, Any]:
    return {"shape": list(tensor.shape), "dtype": tensor.type.name}


def _tensors(parts: tuple[GgufPart, ...]) -> dict[str, tuple[GgufPart, GgufTensor]]:
    return {tensor.name: (part, tensor) for part in parts for tensor in part.header.tensors}


def _difference(path_a: Path, a: GgufTensor, path_b: Path, b: GgufTensor) -> TensorDifference:
    """How far the values of b are from those of a, in float64."""
    maximum = torch.zeros((), dtype=torch.float64)
    square, square_of_a = maximum.clone(), maximum.clone()
    for values_a, values_b in zip(read_pieces(path_a, a), read_pieces(path_b, b), strict=True):
        # The difference of two equal infinities is NaN, and must count as zero.
        distance = torch.where(values_a == values_b, 0, values_b.double() - values_a.double())
        maximum = torch.maximum(maximum, distance.abs().max())
        square += distance.square().sum()
        square_of_a += values_a.double().square().sum()
    relative = torch.sqrt(square / square_of_a) if square != 0 else square
    return TensorDifference(float(maximum), float(relative))
