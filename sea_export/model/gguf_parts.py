"""The files of one GGUF model: a single one, or the parts into which llama.cpp's llama-gguf-split divides it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from sea_export.errors import InputError, SeaExportError
from sea_export.model.gguf_header import GgufHeader, GgufTensor, encode_header, read_gguf_header

__all__ = ["GgufPart", "join_parts", "part_names", "read_parts"]

_PART = re.compile(r"(?P<name>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.DOTALL)
_SPLIT = "split."
_TENSOR_COUNT = "split.tensors.count"
_MAXIMUM_PARTS = 1000


@dataclass(frozen=True)
class GgufPart:
    """One file of a model."""

    path: Path
    header: GgufHeader


def part_names(name: str) -> tuple[str, ...]:
    """The names of all files of a model, in their order; the name itself if it is not that of one part of several.

    Args:
        name: the name of one of them.

    Raises:
        InputError: it says that the model has no part, or more parts than any.
    """
    match = _PART.fullmatch(name)
    if match is None:
        return (name,)
    count = int(match["count"])
    if not 1 <= int(match["number"]) <= count <= _MAXIMUM_PARTS:
        raise InputError(f"{name}: by its name it is no part of a GGUF model. Give it the name that it had.")
    return tuple(f"{match['name']}-{number:05}-of-{count:05}.gguf" for number in range(1, count + 1))


def read_parts(path: Path) -> tuple[GgufPart, ...]:
    """All files of a model with their headers.

    Args:
        path: its only file, or the first of its parts.

    Raises:
        InputError: a part is missing or broken, or the parts do not belong together, or `path` is not the first.
    """
    names = part_names(path.name)
    if path.name != names[0]:
        raise InputError(f"{path}: it is one part of a GGUF model. Give the first one, {names[0]}.")
    parts = tuple(GgufPart(path.with_name(name), read_gguf_header(path.with_name(name))) for name in names)
    tensors = [tensor.name for part in parts for tensor in part.header.tensors]
    if not tensors:
        raise InputError(f"{path}: it holds no weights of a model. Give a GGUF file of a language model.")
    stated = parts[0].header.value(_TENSOR_COUNT)
    split = parts[0].header.value("split.count") not in (None, 0, 1)
    if split != (len(parts) > 1) or len(set(tensors)) != len(tensors) or stated not in (None, len(tensors)):
        raise InputError(
            f"{path}: its parts do not belong together, or their names are not those that they had. Download all parts "
            "again."
        )
    return parts


def join_parts(parts: Sequence[GgufPart], destination: Path) -> None:
    """Writes a model as one file, as llama.cpp's llama-gguf-split --merge does.

    Args:
        parts: its files.
        destination: the file to write.

    Raises:
        SeaExportError: a file became shorter while it was read.
    """
    first = parts[0].header
    entries = [entry for entry in first.entries if not entry.key.startswith(_SPLIT)]
    tensors = [tensor for part in parts for tensor in part.header.tensors]
    with open(destination, "xb") as joined:
        joined.write(encode_header(first.version, entries, tensors, first.alignment))
        for part in parts:
            with open(part.path, "rb") as stream:
                for tensor in part.header.tensors:
                    stream.seek(tensor.start)
                    start = joined.tell()
                    _copy(stream, joined, tensor, part.path)
                    joined.write(bytes(first.padding(joined.tell() - start)))


def _copy(stream: BinaryIO, joined: BinaryIO, tensor: GgufTensor, path: Path) -> None:
    left = tensor.nbytes
    while left:
        data = stream.read(min(left, 1 << 20))
        if not data:
            raise SeaExportError(f"{path}: it became shorter while it was read. Make sure that nothing writes to it.")
        joined.write(data)
        left -= len(data)
