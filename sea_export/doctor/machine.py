"""What this machine is, and how much of it is free."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import torch

from sea_export.model.available_memory import available_memory
from sea_export.model.threads import Threads
from sea_export.versions import devices, library_versions, system

__all__ = ["Machine", "describe_machine"]


@dataclass(frozen=True)
class Machine:
    """A machine.

    Attributes:
        system: Python and the operating system, by name.
        versions: versions of libraries, by name.
        devices: the devices that can compute, each in a few words.
        threads: with how many threads of the processor a job computes, and why; None if that is not decided.
        free_memory: free bytes, by device.
        disk: the directory whose disk was looked at.
        free_disk: free bytes of that disk.
    """

    system: dict[str, str]
    versions: dict[str, str]
    devices: tuple[str, ...]
    threads: Threads | None
    free_memory: dict[str, int]
    disk: str
    free_disk: int


def describe_machine(directory: Path, threads: Threads | None = None) -> Machine:
    """Describes this machine.

    Args:
        directory: an existing directory on the disk that is to be written to.
        threads: with how many threads a job would compute, if that is decided.
    """
    names = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    return Machine(
        system=system(),
        versions=library_versions(optional=True),
        devices=devices(),
        threads=threads,
        free_memory={name: available_memory(torch.device(name)) for name in names},
        disk=str(directory),
        free_disk=shutil.disk_usage(directory).free,
    )
