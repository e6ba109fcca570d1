"""Arrays in numpy's files, `.npy` and `.npz`, read without what a pickle may ask for.

numpy reserves the memory that the header of an array asks for before it reads. So the header is read first, and has to
fit the bytes that there are (https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html).
"""

from __future__ import annotations

import math
import os
import zipfile
from collections.abc import Callable, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.lib import format as npy_format
from torch import Tensor

from sea_export.errors import refused_by_library
from sea_export.files.archives import directory_bytes
from sea_export.files.reading import open_file
from sea_export.importing.source_forms import MAXIMUM_BYTES

__all__ = ["read_npy", "read_npz"]

_MAXIMUM_DIRECTORY_BYTES = 8_000_000
_HEADERS: Mapping[tuple[int, int], Callable[[BinaryIO], tuple[tuple[int, ...], bool, np.dtype[Any]]]] = {
    (1, 0): npy_format.read_array_header_1_0,
    (2, 0): npy_format.read_array_header_2_0,
}


def read_npy(path: Path) -> dict[str, Tensor]:
    """The one array of a `.npy` file, under an empty name, in float64.

    Args:
        path: the file.

    Raises:
        InputError: it is missing or damaged, or holds something other than numbers.
    """
    with open_file(path) as stream, refused_by_library(f"{path}: it is not an array of numbers", "Save it again."):
        return {"": _array(stream, os.fstat(stream.fileno()).st_size)}


def read_npz(path: Path) -> dict[str, Tensor]:
    """The arrays of a `.npz` file by name, in float64.

    Args:
        path: the file.

    Raises:
        InputError: it is missing or damaged, too large, or holds something other than numbers.
    """
    with open_file(path) as stream, refused_by_library(f"{path}: it does not hold arrays", "Save it again."):
        if directory_bytes(stream) > _MAXIMUM_DIRECTORY_BYTES:
            raise ValueError("it is an archive of too many files")
        with zipfile.ZipFile(stream) as archive:
            entries = archive.infolist()
            if sum(entry.file_size for entry in entries) > MAXIMUM_BYTES:
                raise ValueError(f"its arrays have more than {MAXIMUM_BYTES >> 20} MB")
            arrays = {}
            for entry in entries:
                with archive.open(entry) as opened:
                    contents = opened.read(entry.file_size + 1)
                arrays[entry.filename.removesuffix(".npy")] = _array(BytesIO(contents), len(contents))
    return arrays


def _array(stream: BinaryIO, size: int) -> Tensor:
    """One array. Raises ValueError, with the reason, if it is not one of numbers."""
    version = npy_format.read_magic(stream)
    if version not in _HEADERS:
        raise ValueError(f"it has version {version} of the format, which has no numbers alone")
    shape, by_columns, dtype = _HEADERS[version](stream)
    if dtype.kind not in "fiu":
        raise ValueError(f"it holds values of the type {dtype}, and not numbers")
    count = math.prod(shape)
    if count * dtype.itemsize != size - stream.tell() or size > MAXIMUM_BYTES:
        raise ValueError(f"it has {size - stream.tell()} bytes, which are not those of the shape {shape}")
    values = np.frombuffer(stream.read(), dtype, count).astype(np.float64)
    return torch.from_numpy(values.reshape(shape, order="F" if by_columns else "C").copy())
