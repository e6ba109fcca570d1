"""The values of the tensors of GGUF files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants
from torch import Tensor

from sea_export.errors import InputError
from sea_export.model.gguf_header import GgufTensor
from sea_export.model.gguf_parts import GgufPart

__all__ = ["decode", "matrices", "read_bytes", "read_tensor"]

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
    rows = np.ascontiguousarray(data).reshape(-1, shape[-1] // GGML_QUANT_SIZES[type][0] * GGML_QUANT_SIZES[type][1])
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
    """
    return np.fromfile(path, np.uint8, tensor.nbytes, offset=tensor.start)
