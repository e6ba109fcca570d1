"""How much memory a model needs, and how much there is for it."""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import psutil
import torch
from torch import Tensor

from sea_export.model.checkpoint import Checkpoint

if TYPE_CHECKING:
    from sea_export.model.base import Base

__all__ = ["available_memory", "fits", "fits_whole", "unpooled_tensor", "weight_bytes"]

# What a model in memory needs beside its weights, as a share of them: activations, and copies made while it is loaded.
_OVERHEAD = 0.15


def fits(weights: int, device: torch.device) -> bool:
    """Whether a model fits into the memory that is available on a device.

    Args:
        weights: the size of its weights in bytes.
        device: where it computes.
    """
    return weights * (1 + _OVERHEAD) <= available_memory(device)


def available_memory(device: torch.device) -> int:
    """Bytes that a device can still give without swapping, within the limits of the container of this process."""
    if device.type == "cuda":
        free: int = torch.cuda.mem_get_info(device)[0]
        return free
    available: int = psutil.virtual_memory().available
    return max(0, min([available, *_room_in_groups()]))


def _room_in_groups() -> Iterator[int]:
    """For each control group (of version 2 or 1) of this process, and for its parents, the bytes below its limit."""
    groups = Path("/proc/self/cgroup")
    for line in groups.read_text(encoding="utf-8").splitlines() if groups.is_file() else []:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root, limit, usage = Path("/sys/fs/cgroup"), "memory.max", "memory.current"
        elif "memory" in controllers.split(","):
            root, limit, usage = Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        group = PurePosixPath(path).relative_to("/")
        for folder in (group, *group.parents):
            files = root / folder / limit, root / folder / usage
            if all(file.is_file() for file in files):
                allowed, used = (file.read_text(encoding="ascii").strip() for file in files)
                if allowed != "max":
                    yield int(allowed) - int(used)


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
