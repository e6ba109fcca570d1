"""The header of a GGUF file: its metadata, which tensors it holds, and where their bytes are.

The gguf package gives values, and a copy that changes single tensors needs the bytes of every other entry as they are.
It also believes the lengths that a file names. So the header is read here, as strictly as llama.cpp reads it
(https://github.com/ggml-org/ggml/blob/master/docs/gguf.md): magic number and version, two counts, the metadata, a
record for each tensor, and then the bytes of the tensors in the order of their records, each padded to the alignment.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType

from sea_export.errors import InputError
from sea_export.files.reading import open_file

__all__ = ["GgufEntry", "GgufHeader", "GgufTensor", "encode_header", "number_entry", "read_gguf_header", "text_entry"]

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_ALIGNMENT_KEY = "general.alignment"
_DEFAULT_ALIGNMENT = 32
_MAXIMUM_ALIGNMENT = 1 << 20
_MAXIMUM_DIMENSIONS = 4
_MAXIMUM_SIZE = 2**62
_MAXIMUM_NAME_LENGTH = 1000
# Several times what the largest published models have, so that no file takes long to be read.
_MAXIMUM_METADATA_BYTES = 1 << 28
_MAXIMUM_ENTRIES = 1 << 16
_MAXIMUM_TENSORS = 1 << 18
_MAXIMUM_TEXTS = 1 << 22

_NUMBERS = {
    GGUFValueType.UINT8: "<B",
    GGUFValueType.INT8: "<b",
    GGUFValueType.UINT16: "<H",
    GGUFValueType.INT16: "<h",
    GGUFValueType.UINT32: "<I",
    GGUFValueType.INT32: "<i",
    GGUFValueType.FLOAT32: "<f",
    GGUFValueType.BOOL: "<?",
    GGUFValueType.UINT64: "<Q",
    GGUFValueType.INT64: "<q",
    GGUFValueType.FLOAT64: "<d",
}


@dataclass(frozen=True)
class GgufEntry:
    """One entry of the metadata.

    Attributes:
        key: its key.
        type: the type of its value.
        value: its value; None for a list.
        data: the bytes of the whole entry: key, type and value.
    """

    key: str
    type: GGUFValueType
    value: str | int | float | bool | None
    data: bytes


@dataclass(frozen=True)
class GgufTensor:
    """One tensor.

    Attributes:
        name: its name.
        shape: its shape, with the dimension whose values are stored side by side last, as in torch.
        type: how its values are encoded.
        start: offset in the file of its first byte.
    """

    name: str
    shape: tuple[int, ...]
    type: GGMLQuantizationType
    start: int = 0

    @property
    def nbytes(self) -> int:
        """The number of its bytes."""
        values, size = GGML_QUANT_SIZES[self.type]
        return math.prod(self.shape) // values * size


@dataclass(frozen=True)
class GgufHeader:
    """The header of one file.

    Attributes:
        version: the version of the format.
        entries: the metadata, in its order.
        tensors: the tensors, in the order of their records and of their bytes.
        alignment: every tensor begins at a multiple of it, counted from `data_start`.
        data_start: offset in bytes of the first tensor.
    """

    version: int
    entries: tuple[GgufEntry, ...]
    tensors: tuple[GgufTensor, ...]
    alignment: int
    data_start: int

    def value(self, key: str) -> str | int | float | bool | None:
        """The value of an entry of the metadata; None if there is no such entry, or if it is a list."""
        return next((entry.value for entry in self.entries if entry.key == key), None)

    def padding(self, count: int) -> int:
        """The number of bytes that follow so many bytes up to the next multiple of the alignment."""
        return -count % self.alignment


def text_entry(key: str, value: str) -> GgufEntry:
    """An entry of the metadata that holds text.

    Args:
        key: its key.
        value: the text.
    """
    kind = GGUFValueType.STRING
    return GgufEntry(key, kind, value, _text(key) + struct.pack("<I", kind) + _text(value))


def number_entry(key: str, value: float, type: GGUFValueType = GGUFValueType.UINT32) -> GgufEntry:
    """An entry of the metadata that holds a number.

    Args:
        key: its key.
        value: the number.
        type: the type in which it is stored.
    """
    return GgufEntry(key, type, value, _text(key) + struct.pack("<I", type) + struct.pack(_NUMBERS[type], value))


def encode_header(version: int, entries: Iterable[GgufEntry], tensors: Iterable[GgufTensor], alignment: int) -> bytes:
    """The bytes of a header, up to the first tensor.

    Args:
        version: the version of the format.
        entries: the metadata.
        tensors: the tensors in the order of their bytes. Where they start is computed anew.
        alignment: that of the metadata.
    """
    entries, tensors = tuple(entries), tuple(tensors)
    parts = [_MAGIC, struct.pack("<IQQ", version, len(tensors), len(entries)), *(entry.data for entry in entries)]
    offset = 0
    for tensor in tensors:
        sizes = struct.pack(f"<I{len(tensor.shape)}Q", len(tensor.shape), *reversed(tensor.shape))
        parts.append(_text(tensor.name) + sizes + struct.pack("<IQ", tensor.type, offset))
        offset += tensor.nbytes + -tensor.nbytes % alignment
    text = b"".join(parts)
    return text + bytes(-len(text) % alignment)


def _text(value: str) -> bytes:
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def read_gguf_header(path: Path) -> GgufHeader:
    """The header of the GGUF file at `path`, checked.

    Args:
        path: the file.

    Raises:
        InputError: the file is missing, or its header is not one that llama.cpp would accept.
    """
    with open_file(path) as stream:
        if stream.read(len(_MAGIC)) != _MAGIC:
            raise InputError(f"{path}: it is not a GGUF file. Give one, or download it again.")
        size = os.fstat(stream.fileno()).st_size
        try:
            return _parse(_Reader(stream, size), size)
        except ValueError as error:
            raise InputError(f"{path}: its GGUF header is broken ({error}). Download it again.") from error


class _Reader:
    """Reads the fields of a header one after the other, and no more of them than there are or can be."""

    def __init__(self, stream: BinaryIO, size: int) -> None:
        self._stream = stream
        self._limit = min(size, _MAXIMUM_METADATA_BYTES)
        self._start = len(_MAGIC)
        self.position = len(_MAGIC)
        """The number of bytes of the file that have been read."""

    def take(self, count: int) -> bytes:
        if count > self._limit - self.position:
            raise ValueError(f"after byte {self.position} it names {count} bytes more, and there are fewer")
        data = self._stream.read(count)
        if len(data) != count:
            raise ValueError("the file became shorter")
        self.position += count
        return data

    def number(self, format: str) -> int:
        value: int = struct.unpack(format, self.take(struct.calcsize(format)))[0]
        return value

    def text(self) -> bytes:
        return self.take(self.number("<Q"))

    def taken(self) -> bytes:
        """Everything that was read since the last call."""
        self._stream.seek(self._start)
        data, self._start = self._stream.read(self.position - self._start), self.position
        return data


def _parse(reader: _Reader, size: int) -> GgufHeader:
    """The header that follows the magic number. Raises ValueError with the reason if it is not valid."""
    version = reader.number("<I")
    if version not in _VERSIONS:
        swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
        raise ValueError(
            "it is for computers of the other byte order" if swapped in _VERSIONS else f"version {version}"
        )
    tensor_count, entry_count = reader.number("<Q"), reader.number("<Q")
    if tensor_count > _MAXIMUM_TENSORS or entry_count > _MAXIMUM_ENTRIES:
        raise ValueError(f"it names {tensor_count} tensors and {entry_count} entries of metadata")
    reader.taken()
    entries = tuple(_entries(reader, entry_count))
    alignment = next((entry for entry in entries if entry.key == _ALIGNMENT_KEY), None)
    step = _DEFAULT_ALIGNMENT if alignment is None else _checked_alignment(alignment)
    records = list(_records(reader, tensor_count))
    data_start = reader.position + -reader.position % step
    tensors, position = [], 0
    for name, shape, kind, offset in records:
        tensor = GgufTensor(name, shape, kind, data_start + offset)
        if offset != position:
            raise ValueError(f"the bytes of {name} do not follow the bytes of the tensor before it")
        if tensor.start + tensor.nbytes > size:
            raise ValueError(f"the file ends inside {name}")
        position += tensor.nbytes + -tensor.nbytes % step
        tensors.append(tensor)
    return GgufHeader(version, entries, tuple(tensors), step, data_start)


def _entries(reader: _Reader, count: int) -> Iterator[GgufEntry]:
    keys = set()
    for _ in range(count):
        key = _name(reader.text(), "a key")
        if key in keys:
            raise ValueError(f"it names {key} twice")
        keys.add(key)
        kind = _value_type(reader.number("<I"), key)
        value = _value(reader, kind, key)
        yield GgufEntry(key, kind, value, reader.taken())


def _value_type(number: int, key: str) -> GGUFValueType:
    try:
        return GGUFValueType(number)
    except ValueError as error:
        raise ValueError(f"{key} has a value of the unknown type {number}") from error


def _value(reader: _Reader, kind: GGUFValueType, key: str) -> str | int | float | bool | None:
    if kind == GGUFValueType.STRING:
        return reader.text().decode("utf-8", "replace")
    if kind != GGUFValueType.ARRAY:
        return reader.number(_NUMBERS[kind])
    inner, count = _value_type(reader.number("<I"), key), reader.number("<Q")
    if inner == GGUFValueType.ARRAY:
        raise ValueError(f"{key} is a list of lists")
    if inner == GGUFValueType.STRING:
        if count > _MAXIMUM_TEXTS:
            raise ValueError(f"{key} is a list of {count} texts")
        for _ in range(count):
            reader.text()
    else:
        reader.take(count * struct.calcsize(_NUMBERS[inner]))
    return None


def _records(reader: _Reader, count: int) -> Iterator[tuple[str, tuple[int, ...], GGMLQuantizationType, int]]:
    """Name, shape, type and offset of every tensor."""
    names = set()
    for _ in range(count):
        name = _name(reader.text(), "a tensor")
        if name in names:
            raise ValueError(f"it names {name} twice")
        names.add(name)
        dimensions = reader.number("<I")
        if dimensions > _MAXIMUM_DIMENSIONS:
            raise ValueError(f"{name} has {dimensions} dimensions")
        shape = tuple(reversed([reader.number("<Q") for _ in range(dimensions)]))
        number = reader.number("<I")
        kind = next((one for one in GGML_QUANT_SIZES if one == number), None)
        if kind is None:
            raise ValueError(f"{name} has values of the unknown type {number}")
        if math.prod(shape) > _MAXIMUM_SIZE or (shape[-1] if shape else 1) % GGML_QUANT_SIZES[kind][0]:
            raise ValueError(f"{name} has the shape {list(shape)}, which no tensor of {kind.name} has")
        yield name, shape, kind, reader.number("<Q")


def _name(data: bytes, what: str) -> str:
    name = data[:_MAXIMUM_NAME_LENGTH].decode("utf-8", "replace")
    if len(data) > _MAXIMUM_NAME_LENGTH or not name.isprintable() or "\ufffd" in name:
        raise ValueError(f"{what} has the name {name[:100]!r}, which cannot be printed")
    return name


def _checked_alignment(entry: GgufEntry) -> int:
    value = entry.value
    if entry.type != GGUFValueType.UINT32 or not isinstance(value, int):
        raise ValueError(f"{_ALIGNMENT_KEY} is not a number of 32 bits")
    if not 0 < value <= _MAXIMUM_ALIGNMENT or value & (value - 1):
        raise ValueError(f"{_ALIGNMENT_KEY} is {value}, and not a power of two")
    return value
