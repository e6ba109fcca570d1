"""Which tensors and files of two checkpoints differ, and by how much."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from sea_export.errors import SeaExportError
from sea_export.files.frames import data_frame
from sea_export.model.checkpoint import Checkpoint
from sea_export.model.model_files import walk_files
from sea_export.model.safetensors_header import StoredTensor, read_header
from sea_export.model.stored_dtypes import numbers_in

if TYPE_CHECKING:
    from pandas import DataFrame

__all__ = [
    "CheckpointDifference",
    "FileDifference",
    "TensorDifference",
    "compare_checkpoints",
    "compare_files",
    "same_layout",
]

_CHUNK_BYTES = 1 << 20
"""A multiple of the size of every dtype, so that no element is cut."""

_FOLDERS_OF_OTHER_TOOLS = (".git", ".cache")


@dataclass(frozen=True)
class TensorDifference:
    """How far a tensor B is from a tensor A of the same shape and dtype, in float64.

    Attributes:
        maximum: max |B - A|.
        relative: ‖B - A‖ / ‖A‖ in the Frobenius norm; infinite if A is zero and B is not.
    """

    maximum: float
    relative: float


@dataclass(frozen=True)
class CheckpointDifference:
    """All differences of two checkpoints, a and b. Everything is sorted.

    Attributes:
        tensors_only_in_a: names.
        tensors_only_in_b: names.
        tensors_of_other_form: name -> how a and b store it, where the shape or the dtype differs.
        tensors_changed: name -> how far b's is from a's, where any byte differs.
        tensors_identical: the number of tensors that are the same, byte for byte.
        metadata_changed: the weight files in both whose header metadata differs.
        files_only_in_a: files that are not weights, as relative POSIX paths.
        files_only_in_b: the same for b.
        files_changed: files in both whose bytes differ.
        files_identical: the number of files that are the same, byte for byte.
    """

    tensors_only_in_a: tuple[str, ...]
    tensors_only_in_b: tuple[str, ...]
    tensors_of_other_form: Mapping[str, tuple[StoredTensor, StoredTensor]]
    tensors_changed: Mapping[str, TensorDifference]
    tensors_identical: int
    metadata_changed: tuple[str, ...]
    files_only_in_a: tuple[str, ...]
    files_only_in_b: tuple[str, ...]
    files_changed: tuple[str, ...]
    files_identical: int

    @property
    def same_weights(self) -> bool:
        """Whether both hold the same tensors with the same bytes, in whatever shards."""
        return not (
            self.tensors_only_in_a or self.tensors_only_in_b or self.tensors_of_other_form or self.tensors_changed
        )

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain JSON data."""
        changed = [{"name": name, **asdict(change)} for name, change in self.tensors_changed.items()]
        other_form = [
            {"name": name, "a": _form(a), "b": _form(b)} for name, (a, b) in self.tensors_of_other_form.items()
        ]
        return {
            "kind": "safetensors",
            "same_weights": self.same_weights,
            "tensors_changed": changed,
            "tensors_of_other_form": other_form,
            "tensors_only_in_a": list(self.tensors_only_in_a),
            "tensors_only_in_b": list(self.tensors_only_in_b),
            "tensors_identical": self.tensors_identical,
            "metadata_changed": list(self.metadata_changed),
            "files_changed": list(self.files_changed),
            "files_only_in_a": list(self.files_only_in_a),
            "files_only_in_b": list(self.files_only_in_b),
            "files_identical": self.files_identical,
        }

    def to_frame(self) -> DataFrame:
        """A row for each tensor that differs, as a data frame of pandas.

        Raises:
            InputError: pandas is not installed.
        """
        return data_frame(self.to_dict()["tensors_changed"], ["name", "maximum", "relative"])

    def not_kept(self, files: Iterable[str]) -> set[str]:
        """Those of some files of a that b lacks, or has with other bytes."""
        return set(files).intersection((*self.files_only_in_a, *self.files_changed))


@dataclass(frozen=True)
class FileDifference:
    """The tensors that differ in two safetensors files, a and b.

    Attributes:
        only_in_a: names.
        only_in_b: names.
        of_other_form: names of tensors in both whose shapes or dtypes differ.
        changed: name -> how far b's is from a's, where any byte differs.
    """

    only_in_a: tuple[str, ...]
    only_in_b: tuple[str, ...]
    of_other_form: tuple[str, ...]
    changed: Mapping[str, TensorDifference]


def compare_files(a: Path, b: Path) -> FileDifference:
    """Compare two safetensors files tensor by tensor, in little memory.

    Args:
        a: the first file.
        b: the second.

    Raises:
        InputError: one of them is not a safetensors file.
        SeaExportError: a file became shorter while it was read.
    """
    first, second = ({tensor.name: tensor for tensor in read_header(file).tensors} for file in (a, b))
    common = sorted(first.keys() & second.keys())
    other_form = [name for name in common if not _same_form(first[name], second[name])]
    comparable = {name: (first[name], second[name]) for name in common if name not in other_form}
    return FileDifference(
        only_in_a=tuple(sorted(first.keys() - second.keys())),
        only_in_b=tuple(sorted(second.keys() - first.keys())),
        of_other_form=tuple(other_form),
        changed=_compare_tensors(a.parent, b.parent, comparable),
    )


def same_layout(a: Path, b: Path, *, besides: Collection[str] = ()) -> bool:
    """Whether two safetensors files have the same metadata, and the same tensors in the same order.

    Args:
        a: the first file.
        b: the second.
        besides: names of tensors that only one of them may have.

    Raises:
        InputError: one of them is not a safetensors file.
    """

    def layout(file: Path) -> tuple[Mapping[str, str], list[str]]:
        header = read_header(file)
        return header.metadata, [tensor.name for tensor in header.tensors if tensor.name not in besides]

    return layout(a) == layout(b)


def compare_checkpoints(first: Checkpoint, second: Checkpoint) -> CheckpointDifference:
    """Compare two checkpoints tensor by tensor and file by file, in little memory.

    The weights are compared by tensor, whatever shard holds them. Differences are computed only where bytes differ. Of
    quantized weights in a storage that is known they are those of the weights that the stored numbers mean.

    Args:
        first: the checkpoint a.
        second: the checkpoint b.

    Raises:
        SeaExportError: a file became shorter while it was read.
    """
    a, b = first.directory, second.directory
    common = sorted(first.tensors.keys() & second.tensors.keys())
    forms = {name: (first.tensors[name], second.tensors[name]) for name in common}
    other_form = {name: pair for name, pair in forms.items() if not _same_form(*pair)}
    comparable = {name: pair for name, pair in forms.items() if name not in other_form}
    changed = _compare_tensors(a, b, comparable)
    changed |= _quantized_differences(first, second, changed)
    files_a, files_b = _other_files(first), _other_files(second)
    files_changed = tuple(file for file in sorted(files_a & files_b) if not _same_bytes(a / file, b / file))
    return CheckpointDifference(
        tensors_only_in_a=tuple(sorted(first.tensors.keys() - second.tensors.keys())),
        tensors_only_in_b=tuple(sorted(second.tensors.keys() - first.tensors.keys())),
        tensors_of_other_form=other_form,
        tensors_changed=changed,
        tensors_identical=len(comparable) - len(changed),
        metadata_changed=tuple(
            file
            for file in first.weight_files
            if file in second.weight_files and read_header(a / file).metadata != read_header(b / file).metadata
        ),
        files_only_in_a=tuple(sorted(files_a - files_b)),
        files_only_in_b=tuple(sorted(files_b - files_a)),
        files_changed=files_changed,
        files_identical=len(files_a & files_b) - len(files_changed),
    )


def _quantized_differences(
    first: Checkpoint, second: Checkpoint, changed: Collection[str]
) -> dict[str, TensorDifference]:
    """Those of quantized weights whose storage is known, by the stored names of their numbers."""
    methods = {one.quantization_method for one in (first, second)}
    if not changed or len(methods) > 1 or methods == {None}:
        return {}
    from sea_export.model.quantized_difference import weight_differences  # with torch, which other checkpoints need not

    found = weight_differences(first, second, str(methods.pop()), changed)
    return {name: TensorDifference(*difference) for name, difference in found.items()}


def _form(tensor: StoredTensor) -> dict[str, Any]:
    return {"shape": list(tensor.shape), "dtype": tensor.stored_as}


def _same_form(a: StoredTensor, b: StoredTensor) -> bool:
    return (a.shape, a.stored_as) == (b.shape, b.stored_as)


def _compare_tensors(
    directory_a: Path, directory_b: Path, pairs: Mapping[str, tuple[StoredTensor, StoredTensor]]
) -> dict[str, TensorDifference]:
    """The tensors whose bytes differ, by name."""
    changed = {}
    for name, (stored_a, stored_b) in pairs.items():
        # For each tensor anew, because a system may allow fewer open files than a model has shards.
        with open(directory_a / stored_a.file, "rb") as stream_a, open(directory_b / stored_b.file, "rb") as stream_b:
            if any(a != b for a, b in _pieces(stream_a, stored_a, stream_b, stored_b)):
                changed[name] = _difference(_pieces(stream_a, stored_a, stream_b, stored_b), stored_a.stored_as)
    return changed


def _pieces(
    stream_a: BinaryIO, stored_a: StoredTensor, stream_b: BinaryIO, stored_b: StoredTensor
) -> Iterator[tuple[bytes, bytes]]:
    """The bytes of two tensors of the same size, piece by piece."""
    size = stored_a.end - stored_a.start
    for offset in range(0, size, _CHUNK_BYTES):
        count = min(_CHUNK_BYTES, size - offset)
        stream_a.seek(stored_a.start + offset)
        stream_b.seek(stored_b.start + offset)
        a, b = stream_a.read(count), stream_b.read(count)
        if len(a) != count or len(b) != count:
            raise SeaExportError(
                f"{stored_a.name}: a file that holds it became shorter while it was compared. Make sure that nothing "
                "writes to it."
            )
        yield a, b


def _difference(pieces: Iterator[tuple[bytes, bytes]], stored_as: str) -> TensorDifference:
    maximum = square = square_of_a = np.float64(0)
    with np.errstate(all="ignore"):  # numbers that are not finite give results that say so
        for piece_a, piece_b in pieces:
            a, b = numbers_in(piece_a, stored_as), numbers_in(piece_b, stored_as)
            # The difference of two equal infinities is NaN, and must count as zero.
            distance = np.abs(np.where(a == b, 0, b - a))
            maximum = np.maximum(maximum, distance.max())
            square += np.square(distance).sum()
            square_of_a += np.square(np.abs(a)).sum()
        # Zeros of different sign have different bytes and equal values.
        relative = np.sqrt(square / square_of_a) if square != 0 else square
    return TensorDifference(float(maximum), float(relative))


def _other_files(checkpoint: Checkpoint) -> set[str]:
    """Every file that is not a weight file in use, as a POSIX path relative to the directory."""
    paths = walk_files(checkpoint.directory, _FOLDERS_OF_OTHER_TOOLS)
    files = {path.relative_to(checkpoint.directory).as_posix() for path in paths if not path.is_dir()}
    return files - set(checkpoint.weight_files)


def _same_bytes(a: Path, b: Path) -> bool:
    if a.stat().st_size != b.stat().st_size:
        return False
    with open(a, "rb") as stream_a, open(b, "rb") as stream_b:
        while piece := stream_a.read(_CHUNK_BYTES):
            if piece != stream_b.read(_CHUNK_BYTES):
                return False
    return True
