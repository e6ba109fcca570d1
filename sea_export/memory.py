"""How much memory there is for a model, and how much it takes."""

from __future__ import annotations

import math
from pathlib import Path

import psutil
import torch

from sea_export.checkpoint import Checkpoint

__all__ = ["available_memory", "weight_bytes"]

# Where a container says how much memory it may use and uses: control groups of version 2 and 1.
_LIMITS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


def available_memory(device: torch.device) -> int:
    """Bytes that can still be taken on a device without swapping, within the limits of a container."""
    if device.type == "cuda":
        free: int = torch.cuda.mem_get_info(device)[0]
        return free
    available: int = psutil.virtual_memory().available
    for limit_file, usage_file in _LIMITS:
        limit, usage = _number(limit_file), _number(usage_file)
        if limit is not None and usage is not None:
            available = min(available, max(limit - usage, 0))
    return available


def _number(file: str) -> int | None:
    try:
        text = Path(file).read_text(encoding="ascii").strip()
    except OSError:
        return None
    return int(text) if text.isdecimal() else None  # "max" where there is no limit


def weight_bytes(checkpoint: Checkpoint, dtype: torch.dtype | None) -> int:
    """Bytes of a checkpoint's weights in memory.

    Args:
        checkpoint: the checkpoint.
        dtype: what floating-point weights are computed in; None for the dtype in which they are stored.
    """
    total = 0
    for tensor in checkpoint.tensors.values():
        if dtype is not None and tensor.dtype.is_floating_point:
            total += math.prod(tensor.shape) * dtype.itemsize
        else:
            total += tensor.end - tensor.start
    return total
