"""The dtypes of a safetensors file: their names there, their names in torch, and their sizes.

Headers are read and compared without torch, which takes seconds to import.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from sea_export.errors import InputError
from sea_export.text import dtype_name

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

__all__ = ["ITEM_SIZES", "TORCH_NAMES", "numbers_in", "stored_name", "torch_dtype"]

TORCH_NAMES: Mapping[str, str] = MappingProxyType(
    {
        "BOOL": "bool",
        "U8": "uint8",
        "I8": "int8",
        "U16": "uint16",
        "I16": "int16",
        "U32": "uint32",
        "I32": "int32",
        "U64": "uint64",
        "I64": "int64",
        "F8_E4M3": "float8_e4m3fn",
        "F8_E4M3FNUZ": "float8_e4m3fnuz",
        "F8_E5M2": "float8_e5m2",
        "F8_E5M2FNUZ": "float8_e5m2fnuz",
        "F8_E8M0": "float8_e8m0fnu",
        "F16": "float16",
        "BF16": "bfloat16",
        "F32": "float32",
        "F64": "float64",
        "C64": "complex64",
    }
)
"""What torch calls each dtype of safetensors."""

_WIDE = {"16": 2, "32": 4, "64": 8}

ITEM_SIZES: Mapping[str, int] = MappingProxyType({name: _WIDE.get(name[-2:], 1) for name in TORCH_NAMES})
"""The bytes of one number, by the name of its dtype in safetensors."""


def torch_dtype(name: str) -> torch.dtype:
    """The dtype of torch.

    Args:
        name: what safetensors calls it; one of `TORCH_NAMES`.

    Raises:
        InputError: the installed torch is too old for it.
    """
    import torch

    dtype: torch.dtype | None = getattr(torch, TORCH_NAMES[name], None)
    if dtype is None:
        raise InputError(
            f"torch: this version has no dtype {TORCH_NAMES[name]}, in which a tensor is stored. Upgrade it."
        )
    return dtype


def stored_name(dtype: torch.dtype) -> str:
    """What safetensors calls a dtype of torch.

    Args:
        dtype: the dtype.

    Raises:
        KeyError: safetensors does not have it.
    """
    return {own: name for name, own in TORCH_NAMES.items()}[dtype_name(dtype)]


def numbers_in(data: bytes, name: str) -> NDArray[Any]:
    """The numbers that a part of a tensor consists of, (n,), in double precision. Only floats of 8 bits need torch.

    Args:
        data: the bytes of whole numbers, one after another.
        name: what safetensors calls their dtype; one of `TORCH_NAMES`.

    Raises:
        InputError: the installed torch is too old for it.
    """
    import numpy as np

    if name == "BF16":  # the upper half of a float32
        return (np.frombuffer(data, np.uint16).astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    if name.startswith("F8"):
        import torch

        return torch.frombuffer(bytearray(data), dtype=torch_dtype(name)).double().numpy()
    numbers = np.frombuffer(data, TORCH_NAMES[name])
    return numbers.astype(np.complex128 if name == "C64" else np.float64)
