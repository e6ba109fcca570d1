"""The values of the tensors of GGUF files."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants
from torch import Tensor

from sea_export.errors import InputError, SeaExportError
from sea_export.model.gguf_header import GgufTensor
from sea_export.model.gguf_parts import GgufPart

__all__ = ["decode", "matrices", "read_bytes", "read_pieces", "read_tensor"]

# A multiple of the number of values in a block of every type, so that no block is cut.
_PIECE_VALUES = 1 << 20

# The types that the gguf package has no decoder for, because they are types of numpy.
_NUMBERS: Mapping[GGMLQuantizationType, np.dtype[Any]] = {
    GGMLQuantizationType.I8: np.dtype("<i1"),
    GGMLQuantizationType.I16: np.dtype("<i2"),
    GGMLQuantizationType.I32: np.dtype("<i4"),
    GGMLQuantizationType.I64: np.dtype("<i8"),
    GGMLQuantizationType.F64: np.dtype("<f8"),
}


def decode(data: np.ndarray, shape: Sequence[int], type: GGMLQuantizationType) -> Tensor:
    """The values of a tensor, in float32.

    Args:
        data: (bytes,) uint8.
        shape: the shape of the tensor.
        type: how the values are encoded.

    Raises:
        InputError: the gguf package cannot decode the type.
    """
    if type in _NUMBERS:
        return torch.from_numpy(np.array(data.view(_NUMBERS[type]), dtype=np.float32)).reshape(tuple(shape))
    if not math.prod(shape):
        return torch.empty(tuple(shape))
    width = shape[-1] if shape else 1
    rows = np.ascontiguousarray(data).reshape(-1, width // GGML_QUANT_SIZES[type][0] * GGML_QUANT_SIZES[type][1])
    try:
        # What is not a number is found later, and told.
        with np.errstate(invalid="ignore", over="ignore"):
            values = quants.dequantize(rows, type)
    except NotImplementedError as error:
        raise InputError(f"{type.name}: the gguf package cannot read tensors of this type. Upgrade it.") from error
    return torch.from_numpy(np.array(values, dtype=np.float32)).reshape(tuple(shape))


def matrices(tensor: GgufTensor, data: np.ndarray) -> Iterator[np.ndarray]:
    """The bytes of each matrix of a tensor, such as that of each expert; those of the whole tensor if it is one.

    Args:
        tensor: the tensor.
        data: (bytes,) uint8, its bytes.
    """
    count = tensor.shape[0] if len(tensor.shape) > 2 else 1
    yield from data.reshape(count, -1)


def read_tensor(parts: Sequence[GgufPart], tensor: GgufTensor) -> Iterator[Tensor]:
    """The matrices of a tensor, or the whole of one with fewer dimensions, in float32.

    Args:
        parts: the files of its model.
        tensor: the tensor.
    """
    data = read_bytes(next(part.path for part in parts if tensor in part.header.tensors), tensor)
    for one in matrices(tensor, data):
        yield decode(one, tensor.shape[-2:], tensor.type)


def read_bytes(path: Path, tensor: GgufTensor) -> np.ndarray:
    """The bytes (bytes,) uint8 of a tensor.

    Args:
        path: the file that holds it.
        tensor: the tensor.

    Raises:
        SeaExportError: the file became shorter since its header was read.
    """
    return _read(path, tensor.start, tensor.nbytes)


def read_pieces(path: Path, tensor: GgufTensor) -> Iterator[Tensor]:
    """All values of a tensor in their order, in float32 and in pieces of one dimension, so that few are in memory.

    Args:
        path: the file that holds it.
        tensor: the tensor.

    Raises:
        InputError: the gguf package cannot decode its type.
        SeaExportError: the file became shorter since its header was read.
    """
    values, size = GGML_QUANT_SIZES[tensor.type]
    count = math.prod(tensor.shape)
    for first in range(0, count, _PIECE_VALUES):
        some = min(_PIECE_VALUES, count - first)
        data = _read(path, tensor.start + first // values * size, some // values * size)
        yield decode(data, (some,), tensor.type)


def _read(path: Path, start: int, count: int) -> np.ndarray:
    data = np.fromfile(path, np.uint8, count, offset=start)
    if data.size != count:
        raise SeaExportError(f"{path}: it became shorter while it was read. Make sure that nothing writes to it.")
    return data
