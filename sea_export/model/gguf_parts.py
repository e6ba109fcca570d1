"""The files of one GGUF model: a single one, or the parts into which llama.cpp's llama-gguf-split divides it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from sea_export.errors import InputError, SeaExportError
from sea_export.model.gguf_header import GgufHeader, GgufTensor, encode_header, read_gguf_header
from sea_export.model.model_files import gguf_part_names

__all__ = ["GgufPart", "join_parts", "read_parts"]

_SPLIT = "split."
_TENSOR_COUNT = "split.tensors.count"


@dataclass(frozen=True)
class GgufPart:
    """One file of a model."""

    path: Path
    header: GgufHeader


def read_parts(path: Path) -> tuple[GgufPart, ...]:
    """All files of a model with their headers.

    Args:
        path: its only file, or the first of its parts.

    Raises:
        InputError: a part is missing or broken, or the parts do not belong together, or `path` is not the first.
    """
    names = gguf_part_names(path.name)
    if path.name != names[0]:
        raise InputError(f"{path}: it is one part of a GGUF model. Give the first one, {names[0]}.")
    missing = next((name for name in names if not path.with_name(name).exists()), None)
    if missing is not None and len(names) > 1:
        raise InputError(f"{path}: its model has {len(names)} parts, and {missing} is missing. Put all parts there.")
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


def join_parts(parts: Sequence[GgufPart], destination: Path, *, weights: bool = True) -> None:
    """Writes a model as one file, as llama.cpp's llama-gguf-split --merge does.

    Args:
        parts: its files.
        destination: the file to write.
        weights: whether the values of the tensors are written. Without them the file is sparse, of its full size.

    Raises:
        SeaExportError: a file became shorter while it was read.
    """
    first = parts[0].header
    entries = [entry for entry in first.entries if not entry.key.startswith(_SPLIT)]
    tensors = [tensor for part in parts for tensor in part.header.tensors]
    with open(destination, "xb") as joined:
        joined.write(encode_header(first.version, entries, tensors, first.alignment))
        if not weights:
            joined.truncate(joined.tell() + sum(one.nbytes + first.padding(one.nbytes) for one in tensors))
            return
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
