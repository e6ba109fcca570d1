"""Makes the files of an output from a patch and its base: to digest them, or to write them."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Protocol

from sea_export.errors import InputError, SeaExportError
from sea_export.locks import scratch_directory
from sea_export.patches.patch_file import EDIT_FILES, Patch
from sea_export.patches.patch_pieces import Copy, Data, Fold, ResultFile

if TYPE_CHECKING:
    from torch import Tensor

    from sea_export.edit.layer_edit import LayerEdit
    from sea_export.model.targets import Target

__all__ = ["Digester", "edits_of", "rebuild"]

_CHUNK_BYTES = 1 << 20
_SKIPPED_BYTES = 8 << 20


class Sink(Protocol):
    """What goes through a file of the base and makes another one: `sea_export.export.streaming.FileCopy`, for one."""

    def copy(self, count: int) -> None:
        """Takes over the next bytes of the base's file."""

    def take(self, count: int) -> Tensor:
        """Reads the next bytes of the base's file, (count,) uint8, without taking them over."""

    def put(self, data: memoryview) -> None:
        """Takes over other bytes."""


def rebuild(file: ResultFile, patch: Patch, edits: Mapping[Target, Sequence[LayerEdit]], sink: Sink) -> None:
    """Makes one file of the output.

    Args:
        file: what it consists of.
        patch: the patch.
        edits: those of each target, which folds use.
        sink: where it goes, at the start of the base's file.

    Raises:
        InputError: an edit does not fit a tensor.
        SeaExportError: a file became shorter.
    """
    for piece in file.pieces:
        if isinstance(piece, Copy):
            sink.copy(piece.count)
        elif isinstance(piece, Data):
            for start in range(0, piece.replaced, _SKIPPED_BYTES):
                sink.take(min(_SKIPPED_BYTES, piece.replaced - start))
            for chunk in patch.chunks(piece.tensor) if piece.tensor is not None else ():
                sink.put(chunk)
        else:
            sink.put(_folded(piece, patch, edits, sink.take(piece.count)).numpy().data)


def _folded(piece: Fold, patch: Patch, edits: Mapping[Target, Sequence[LayerEdit]], stored: Tensor) -> Tensor:
    """The bytes (count,) of a tensor with its edits folded in, from the bytes of the base's."""
    import torch

    from sea_export.edit.fold import fold_tensor
    from sea_export.model.stored_dtypes import torch_dtype

    weight = stored.view(torch_dtype(piece.stored_as)).reshape(piece.shape)
    own = edits.get(piece.target)
    if own is None or any(edit.size != piece.shape[piece.output_dim] for edit in own):
        raise InputError(f"{patch.path}: its edit does not fit {piece.target}. Get it again, or make it again.")
    folded = fold_tensor(weight, own, piece.output_dim).reshape(-1)
    if piece.positions is not None and piece.values is not None:
        positions = torch.frombuffer(_whole(patch, piece.positions), dtype=torch.int64)
        values = torch.frombuffer(_whole(patch, piece.values), dtype=folded.dtype)
        if bool(((positions < 0) | (positions >= folded.numel())).any()):
            raise InputError(f"{patch.path}: {piece.positions} lie outside of the tensor. Get it again.")
        folded[positions] = values
    return folded.view(torch.uint8)


def _whole(patch: Patch, name: str) -> bytearray:
    return bytearray(b"".join(patch.chunks(name)))


def edits_of(patch: Patch) -> Mapping[Target, Sequence[LayerEdit]]:
    """The edits that the folds of a patch use; empty if it has no fold.

    Args:
        patch: the patch.

    Raises:
        InputError: the edit in it is damaged.
    """
    if not any(isinstance(piece, Fold) for file in patch.files.values() for piece in file.pieces):
        return {}
    from sea_export.edit.storage import layers_of
    from sea_export.edit.stored_edit import read_stored_edit

    with scratch_directory("sea-export-patch-", Path(tempfile.gettempdir())) as scratch:
        for name in EDIT_FILES:
            with open(scratch / Path(name).name, "wb") as stream:
                for tensor in patch.files[name].tensors:
                    stream.writelines(patch.chunks(tensor))
        try:
            return layers_of(read_stored_edit(scratch))
        except InputError as error:  # it names a file that nobody else knows
            raise InputError(f"{patch.path}: the edit in it is damaged. Get it again, or make it again.") from error


class Digester:
    """A sink that knows the digest of what it was given.

    Args:
        source: the file of the base; None for a file without one.
        written: where it is written too; None for nowhere.
    """

    def __init__(self, source: Path | None, written: BinaryIO | None = None) -> None:
        self._path, self._written = source, written
        self._source = None if source is None else open(source, "rb")  # noqa: SIM115 - closed by __exit__
        self._digest = hashlib.sha256()

    def __enter__(self) -> Digester:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._source is not None:
            self._source.close()

    def copy(self, count: int) -> None:
        for start in range(0, count, _CHUNK_BYTES):
            self.put(memoryview(self._read(min(_CHUNK_BYTES, count - start))))

    def take(self, count: int) -> Tensor:
        import torch

        data = bytearray(self._read(count))
        return torch.frombuffer(data, dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)

    def put(self, data: memoryview) -> None:
        self._digest.update(data)
        if self._written is not None:
            self._written.write(data)

    def sha256(self) -> str:
        """The digest, in hexadecimal."""
        return self._digest.hexdigest()

    def _read(self, count: int) -> bytes:
        data = b"" if self._source is None else self._source.read(count)
        if len(data) != count:
            raise SeaExportError(
                f"{self._path}: it became shorter while it was read. Make sure that nothing writes to it."
            )
        return data
