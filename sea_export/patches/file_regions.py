"""The parts of a weight file, and how the parts of an output's file are those of its base's.

A weight file is a header, and then one tensor after another, in safetensors as in GGUF. An output has its tensors in
the order of its base, perhaps with new ones at the end. So what differs is found tensor by tensor, wherever the bytes
are in the two files.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sea_export.errors import SeaExportError
from sea_export.model.safetensors_header import read_header

__all__ = ["HEADER", "Match", "Region", "is_weight_file", "matched", "regions_of"]

HEADER = ""
"""The name of the region of a header. No tensor has it."""
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class Region:
    """A part of a file.

    Attributes:
        name: the name of the tensor in it, or `HEADER`.
        start: offset of its first byte.
        end: offset of the byte after its last.
        stored_as: what safetensors calls the dtype of the tensor; `U8` for bytes of another kind.
        shape: the shape of the tensor; (n,) for bytes.
    """

    name: str
    start: int
    end: int
    stored_as: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """The number of its bytes."""
        return self.end - self.start


def is_weight_file(name: str) -> bool:
    """Whether a file has tensors that can be compared.

    Args:
        name: its name.
    """
    return name.endswith((".safetensors", ".gguf"))


def regions_of(path: Path) -> tuple[Region, ...]:
    """The regions of a weight file, in their order. Together they are the whole file.

    Args:
        path: the file.

    Raises:
        InputError: its header is broken.
    """
    if path.suffix == ".gguf":
        return tuple(_gguf_regions(path))
    header = read_header(path)
    tensors = [Region(one.name, one.start, one.end, one.stored_as, one.shape) for one in header.tensors]
    return (_bytes(HEADER, 0, header.data_start), *tensors)


def _gguf_regions(path: Path) -> Iterator[Region]:
    """A tensor ends where the next one begins, with the bytes between them."""
    from sea_export.model.gguf_model import check_gguf_package

    check_gguf_package(path)
    from sea_export.model.gguf_header import read_gguf_header

    tensors, size = read_gguf_header(path).tensors, path.stat().st_size
    starts = [one.start for one in tensors]
    ends = [*starts, size]
    yield _bytes(HEADER, 0, ends[0])
    for tensor, start, end in zip(tensors, starts, ends[1:], strict=True):
        yield _bytes(tensor.name, start, end)


def _bytes(name: str, start: int, end: int) -> Region:
    return Region(name, start, end, "U8", (end - start,))


@dataclass(frozen=True)
class Match:
    """A region of an output's file, beside that of its base's.

    Attributes:
        region: the region.
        replaced: the number of bytes that the base's file has in its place; 0 for a new tensor.
        is_same: whether both have the same bytes.
    """

    region: Region
    replaced: int
    is_same: bool


def matched(base: Path, other: Path) -> list[Match] | None:
    """The regions of a file, each beside that of the base's file.

    Args:
        base: the file of the base.
        other: that of the output.

    Returns:
        None if the tensors are not in the order of the base's.

    Raises:
        InputError: a header is broken.
        SeaExportError: a file became shorter while it was read.
    """
    first, second = regions_of(base), regions_of(other)
    if [one.name for one in first] != [one.name for one in second[: len(first)]]:
        return None
    common = [
        Match(region, one.size, _same_bytes(base, one, other, region))
        for one, region in zip(first, second, strict=False)
    ]
    return [*common, *(Match(region, 0, False) for region in second[len(first) :])]


def _same_bytes(base: Path, one: Region, other: Path, region: Region) -> bool:
    if one.size != region.size:
        return False
    with open(base, "rb") as stream, open(other, "rb") as other_stream:
        stream.seek(one.start)
        other_stream.seek(region.start)
        for offset in range(0, one.size, _CHUNK_BYTES):
            count = min(_CHUNK_BYTES, one.size - offset)
            pieces = stream.read(count), other_stream.read(count)
            if any(len(piece) != count for piece in pieces):
                raise SeaExportError(
                    f"{other}: a file changed while it was compared. Make sure that nothing writes to it."
                )
            if pieces[0] != pieces[1]:
                return False
    return True
