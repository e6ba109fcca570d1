"""The file that vectors are imported from: read and checked, without running any code that it names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sea_export.errors import InputError
from sea_export.files.digests import file_digest
from sea_export.files.reading import read_json
from sea_export.importing.array_files import read_npy, read_npz
from sea_export.importing.source_forms import ADAPTER_FORM, CONTROL_VECTOR_FORM, check_source_file
from sea_export.model.gguf_model import check_gguf_package
from sea_export.model.pickled_weights import is_stored, load_pickle
from sea_export.model.safetensors_header import read_header

__all__ = ["SourceFile", "read_source_file"]

_DIRECTION = "direction."
_FLOATS = ("F64", "F32", "F16", "BF16")
_MAXIMUM_DEPTH = 5
_MAXIMUM_ARRAYS = 10_000


@dataclass(frozen=True)
class SourceFile:
    """What a file holds."""

    name: str
    """The name of the file, without its path."""
    form: str
    sha256: str
    """In hexadecimal."""
    arrays: Mapping[str, Tensor]
    """Float64 by name; a single array may have an empty one. Parts of nested names are joined by dots."""


def read_source_file(path: Path) -> SourceFile:
    """The arrays in a file.

    Args:
        path: the file.

    Raises:
        InputError: see `sea_export.importing.source_forms.check_source_file`; or it is damaged, holds no arrays of
            numbers, or needs code to be run.
    """
    form = check_source_file(path)
    if form == ADAPTER_FORM:
        raise InputError(f"{path}: it is an adapter, and not a file of vectors. Give a file.")
    arrays = {name: tensor.double() for name, tensor in _READERS[form](path).items()}
    if not arrays:
        raise InputError(f"{path}: it holds no array of numbers. Give a file of vectors.")
    return SourceFile(path.name, form, file_digest(path), arrays)


def _read_gguf(path: Path) -> dict[str, Tensor]:
    check_gguf_package(path)
    from sea_export.model.gguf_header import read_gguf_header
    from sea_export.model.gguf_values import decode, read_bytes

    tensors = read_gguf_header(path).tensors
    others = [tensor.name for tensor in tensors if not tensor.name.startswith(_DIRECTION) or len(tensor.shape) != 1]
    if others or not tensors:
        raise InputError(
            f"{path}: {others[0] if others else 'nothing'} is not what a control vector consists of, which are tensors "
            f"{_DIRECTION}N of one dimension. Give the GGUF file of a control vector."
        )
    return {one.name: decode(read_bytes(path, one), one.shape, one.type) for one in tensors}


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    for tensor in read_header(path).tensors:
        if tensor.stored_as not in _FLOATS:
            raise InputError(f"{path}: {tensor.name} is stored as {tensor.stored_as}. Give vectors in floating point.")
    from safetensors.torch import load_file

    return load_file(path)


def _read_json(path: Path) -> dict[str, Tensor]:
    return _collected(path, read_json(path, unique_keys=True))


def _read_pickle(path: Path) -> dict[str, Tensor]:
    return _collected(path, load_pickle(path))


def _collected(path: Path, value: object) -> dict[str, Tensor]:
    arrays: dict[str, Tensor] = {}
    for name, array in _arrays(path, value, "", 0):
        if name in arrays:
            raise InputError(f"{path}: it has two arrays that are called {name!r}. Give each its own name.")
        arrays[name] = array
        if len(arrays) > _MAXIMUM_ARRAYS:
            raise InputError(f"{path}: it holds more than {_MAXIMUM_ARRAYS} arrays. Give a file of vectors.")
    return arrays


def _arrays(path: Path, value: object, name: str, depth: int) -> Iterator[tuple[str, Tensor]]:
    """All arrays in a value, with their names. Texts and single numbers, which describe them, are left out."""
    if depth > _MAXIMUM_DEPTH:
        raise InputError(f"{path}: {name} is nested too deeply for a vector. Give a map from layers to vectors.")
    if isinstance(value, Tensor):
        if not is_stored(value) or value.is_complex():
            raise InputError(f"{path}: {name or 'it'} does not hold the numbers of a vector. Save it again.")
        yield name, value
    elif isinstance(value, dict):
        for key, entry in value.items():
            yield from _arrays(path, entry, f"{name}.{key}" if name else str(key), depth + 1)
    elif isinstance(value, (list, tuple)):
        if any(isinstance(entry, Tensor) for entry in value):
            for number, entry in enumerate(value):
                yield from _arrays(path, entry, f"{name}.{number}" if name else str(number), depth + 1)
        else:
            yield name, _tensor(path, value, name)


def _tensor(path: Path, numbers: object, name: str) -> Tensor:
    try:
        return torch.tensor(numbers, dtype=torch.float64)
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise InputError(
            f"{path}: {name or 'it'} is not a list of numbers, or of lists of as many numbers each. Save it again."
        ) from error


_READERS = {
    CONTROL_VECTOR_FORM: _read_gguf,
    "safetensors": _read_safetensors,
    "npz": read_npz,
    "npy": read_npy,
    "JSON": _read_json,
    "PyTorch pickle": _read_pickle,
}
