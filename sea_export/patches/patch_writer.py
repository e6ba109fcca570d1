"""Writes the file of a patch, some bytes at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from sea_export.errors import SeaExportError
from sea_export.model.safetensors_header import Header, StoredTensor, encode_header
from sea_export.model.stored_dtypes import ITEM_SIZES

__all__ = ["PatchTensor", "write_patch"]

_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class PatchTensor:
    """A tensor that a patch holds.

    Attributes:
        name: its name there.
        stored_as: what safetensors calls its dtype.
        shape: its shape.
        source: the file that holds its bytes; None if they are in `data`.
        start: offset of its first byte in that file.
        size: the number of its bytes.
        data: its bytes.
    """

    name: str
    stored_as: str
    shape: tuple[int, ...]
    source: Path | None
    start: int
    size: int
    data: bytes = b""

    def write_to(self, stream: BinaryIO) -> None:
        """Writes its bytes.

        Raises:
            SeaExportError: the file that holds them has become shorter.
        """
        if self.source is None:
            stream.write(self.data)
            return
        with open(self.source, "rb") as read:
            read.seek(self.start)
            for offset in range(0, self.size, _CHUNK_BYTES):
                count = min(_CHUNK_BYTES, self.size - offset)
                data = read.read(count)
                if len(data) != count:
                    raise SeaExportError(
                        f"{self.source}: it changed while it was read. Make sure that nothing writes to it."
                    )
                stream.write(data)


def write_patch(path: Path, tensors: Sequence[PatchTensor], metadata: Mapping[str, str]) -> None:
    """Writes a safetensors file.

    Args:
        path: the file, which does not exist.
        tensors: what it holds. Those of wide dtypes come first, so that every number is aligned.
        metadata: its metadata.

    Raises:
        SeaExportError: a file that holds a tensor has become shorter.
        OSError: it could not be written.
    """
    ordered = sorted(tensors, key=lambda tensor: -ITEM_SIZES[tensor.stored_as])
    placed, position = [], 0
    for tensor in ordered:
        end = position + tensor.size
        placed.append(StoredTensor(tensor.name, tensor.stored_as, tensor.shape, path.name, position, end))
        position = end
    with open(path, "xb") as stream:
        stream.write(encode_header(Header(0, metadata, tuple(placed))))
        for tensor in ordered:
            tensor.write_to(stream)
