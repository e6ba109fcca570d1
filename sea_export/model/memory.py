"""How much memory a model needs, and whether there is so much."""

from __future__ import annotations

import math
import mmap
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sea_export.model.available_memory import available_memory
from sea_export.model.checkpoint import Checkpoint

if TYPE_CHECKING:
    from sea_export.model.base import Base

__all__ = ["fits", "fits_whole", "unpooled_tensor", "weight_bytes"]

# What a model in memory needs beside its weights, as a share of them: activations, and copies made while it is loaded.
_OVERHEAD = 0.15


def fits(weights: int, device: torch.device) -> bool:
    """Whether a model fits into the memory that is available on a device.

    Args:
        weights: the size of its weights in bytes.
        device: where it computes.
    """
    return weights * (1 + _OVERHEAD) <= available_memory(device)


def weight_bytes(checkpoint: Checkpoint, dtype: torch.dtype | None) -> int:
    """Bytes that the weights of a checkpoint need in memory.

    Args:
        checkpoint: the checkpoint.
        dtype: the dtype of floating-point weights in memory; None for the dtype in which they are stored.
    """
    total = 0
    for tensor in checkpoint.tensors.values():
        if dtype is not None and tensor.dtype.is_floating_point:
            total += math.prod(tensor.shape) * dtype.itemsize
        else:
            total += tensor.end - tensor.start
    return total


def unpooled_tensor(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """A tensor of zeros whose memory goes back to the system when it is freed. A heap may keep freed memory.

    Args:
        shape: its shape.
        dtype: its dtype.
    """
    count = math.prod(shape)
    if count == 0:
        return torch.zeros(tuple(shape), dtype=dtype)
    memory = mmap.mmap(-1, count * dtype.itemsize)
    return torch.frombuffer(memory, dtype=dtype).view(tuple(shape))


def fits_whole(base: Base, dtype: torch.dtype | None, device: torch.device) -> bool:
    """Whether all layers of a base fit together into the memory of a device.

    Args:
        base: the base.
        dtype: what to compute in; None for the dtype in which it is stored.
        device: where it computes.
    """
    return fits(weight_bytes(base.checkpoint, dtype), device)
