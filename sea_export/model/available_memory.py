"""How much memory there is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import psutil
import torch

__all__ = ["available_memory"]


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
