"""The header of a safetensors file: which tensors it holds and where their bytes are.

The safetensors library gives tensors, but not their positions in the file. A fold that rewrites some bytes and copies
the others needs the positions. So the header is read here, as strictly as the library reads it
(https://github.com/huggingface/safetensors#format): eight bytes with the length of the header (little-endian), a JSON
object, and then the bytes of the tensors one after another without gaps.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from sea_export.errors import InputError
from sea_export.files.reading import MAXIMUM_JSON_BYTES, open_file, parse_json
from sea_export.model.stored_dtypes import ITEM_SIZES, torch_dtype

if TYPE_CHECKING:
    import torch

__all__ = ["Header", "StoredTensor", "encode_header", "read_header"]

# Above what any tensor has, and low enough to multiply and add sizes without overflow or delay.
_MAXIMUM_DIMENSIONS = 64
_MAXIMUM_SIZE = 2**62
_MAXIMUM_NAME_LENGTH = 1000

_LENGTH_BYTES = 8


@dataclass(frozen=True)
class StoredTensor:
    """Where one tensor is stored.

    Attributes:
        name: its name in the checkpoint.
        stored_as: what safetensors calls the stored dtype, such as `BF16`.
        shape: the stored shape.
        file: the name of the safetensors file.
        start: offset in that file of its first byte.
        end: offset in that file of the byte after its last.
    """

    name: str
    stored_as: str
    shape: tuple[int, ...]
    file: str
    start: int
    end: int

    @property
    def dtype(self) -> torch.dtype:
        """The stored dtype.

        Raises:
            InputError: the installed torch is too old for it.
        """
        return torch_dtype(self.stored_as)


@dataclass(frozen=True)
class Header:
    """The header of one safetensors file.

    Attributes:
        data_start: offset in bytes of the first tensor: the size of the length field and the header together.
        metadata: the header's `__metadata__`, empty if it has none.
        tensors: the tensors in the order of their bytes. Each begins where the one before it ends.
    """

    data_start: int
    metadata: Mapping[str, str]
    tensors: tuple[StoredTensor, ...]


def read_header(path: Path) -> Header:
    """The header of the safetensors file at `path`, checked.

    Args:
        path: the file.

    Raises:
        InputError: the file is missing, or its header is not one that safetensors would accept.
    """
    with open_file(path) as stream:
        size = os.fstat(stream.fileno()).st_size
        length = int.from_bytes(stream.read(_LENGTH_BYTES), "little")
        if size < _LENGTH_BYTES or length > min(size - _LENGTH_BYTES, MAXIMUM_JSON_BYTES):
            raise InputError(f"{path}: it is not a safetensors file, or only a part of one. Download it again.")
        text = stream.read(length)
    try:
        entries = parse_json(text, unique_keys=True)
        return _parse_entries(entries, path.name, data_start=_LENGTH_BYTES + length, size=size)
    except ValueError as error:
        raise InputError(f"{path}: its safetensors header is broken ({error}). Download it again.") from error


def encode_header(header: Header) -> bytes:
    """The bytes of a header as a file has them: length field, JSON, and padding to a multiple of 8 bytes.

    Args:
        header: the header. The offsets of its tensors are written relative to its `data_start`, as the format asks.
    """
    entries: dict[str, object] = {"__metadata__": dict(header.metadata)} if header.metadata else {}
    for tensor in header.tensors:
        entries[tensor.name] = {
            "dtype": tensor.stored_as,
            "shape": list(tensor.shape),
            "data_offsets": [tensor.start - header.data_start, tensor.end - header.data_start],
        }
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(_LENGTH_BYTES, "little") + text


def _parse_entries(entries: object, file: str, *, data_start: int, size: int) -> Header:
    """The header that parsed JSON describes. Raises ValueError with the reason if it is not valid."""
    if not isinstance(entries, dict):
        raise ValueError("it is not a JSON object")
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("__metadata__ does not map text to text")
    tensors = [_parse_tensor(name, entry, file, data_start) for name, entry in entries.items()]
    tensors.sort(key=lambda tensor: (tensor.start, tensor.end))
    position = data_start
    for tensor in tensors:
        if tensor.start != position:
            raise ValueError(f"the bytes of {tensor.name} do not follow the bytes of the tensor before it")
        position = tensor.end
    if position != size:
        raise ValueError(f"its tensors end at byte {position}, and the file at byte {size}")
    return Header(data_start, MappingProxyType(metadata), tuple(tensors))


def _parse_tensor(name: str, entry: object, file: str, data_start: int) -> StoredTensor:
    """One entry of a header. Raises ValueError with the reason if it is not valid."""
    if len(name) > _MAXIMUM_NAME_LENGTH or not name.isprintable():
        raise ValueError(f"a tensor has the name {name[:100]!r}, which cannot be printed")
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"the entry of {name} does not consist of dtype, shape and data_offsets")
    shape, offsets = entry["shape"], entry["data_offsets"]
    if not _are_sizes(shape) or len(shape) > _MAXIMUM_DIMENSIONS or not _are_sizes(offsets) or len(offsets) != 2:
        raise ValueError(f"shape or data_offsets of {name} are not lists of sizes")
    dtype = entry["dtype"]
    if not isinstance(dtype, str) or dtype not in ITEM_SIZES:
        raise ValueError(f"{name} has the dtype {dtype!r}, which torch does not have")
    start, end = offsets
    if end - start != math.prod(shape) * ITEM_SIZES[dtype]:
        raise ValueError(f"{name} has {end - start} bytes, which do not fit its dtype and shape")
    return StoredTensor(name, dtype, tuple(shape), file, data_start + start, data_start + end)


def _are_sizes(values: object) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value <= _MAXIMUM_SIZE for value in values)
