"""What to compute in, if nobody says it: as stored, or in float32 where a processor is faster in it.

Many processors have no units for half precision, and take several times as long in it. What is computed in float32 from
weights in half precision is exact in the weights, so that results only get better.
"""

from __future__ import annotations

import functools
import time
from typing import TYPE_CHECKING

import torch

from sea_export.model.memory import fits, weight_bytes

if TYPE_CHECKING:
    from sea_export.model.base import Base

__all__ = ["compute_dtype", "float32_is_faster"]

# The shape of the product that is timed, and how often.
_ROWS, _COLUMNS, _RUNS = 128, 512, 3
# How much faster float32 has to be, so that noise does not choose it.
_MARGIN = 0.8


def compute_dtype(base: Base, device: torch.device) -> torch.dtype | None:
    """The dtype to load a base in: float32, or None for the dtype in which it is stored.

    Args:
        base: the base. One that is stored quantized stays as it is.
        device: where it computes. On anything but a CPU it stays as it is.
    """
    if device.type != "cpu" or base.is_quantized:
        return None
    stored = {tensor.dtype for tensor in base.checkpoint.tensors.values() if tensor.dtype.is_floating_point}
    narrow = [dtype for dtype in stored if dtype.itemsize < torch.float32.itemsize]
    if not any(float32_is_faster(dtype) for dtype in narrow):
        return None
    return torch.float32 if fits(weight_bytes(base.checkpoint, torch.float32), device) else None


@functools.cache
def float32_is_faster(dtype: torch.dtype) -> bool:
    """Whether this processor multiplies matrices faster in float32: one product is timed in each, once in a process.

    Args:
        dtype: a dtype of half precision.
    """
    return _seconds(torch.float32) < _MARGIN * _seconds(dtype)


def _seconds(dtype: torch.dtype) -> float:
    left, right = torch.ones(_ROWS, _COLUMNS, dtype=dtype), torch.ones(_COLUMNS, _COLUMNS, dtype=dtype)
    seconds = []
    for _ in range(_RUNS + 1):  # the first one prepares
        start = time.perf_counter()
        left @ right
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])
