"""Files that are completely on the disk, or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from sea_export.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["check_directory", "flush", "readable_as_new", "write_json", "write_tensors", "write_text"]


def check_directory(file: Path) -> None:
    """Raises InputError if the directory of a file to be written does not exist."""
    if not file.resolve().parent.is_dir():
        raise InputError(
            f"{file}: it cannot be written, because its directory does not exist. Create the directory first."
        )


def write_text(path: Path, text: str) -> None:
    """Writes a file. It appears, or replaces an older one, only when it is complete.

    Args:
        path: the file.
        text: its contents, written in UTF-8.
    """
    unfinished = path.with_name(f".{path.name}.unfinished")
    try:
        unfinished.write_text(text, encoding="utf-8")
        flush(unfinished)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Waits until a file, or the entries of a directory, are on the disk, so that they outlast a power failure."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, data: object) -> None:
    """Writes data as indented JSON.

    Args:
        path: the file.
        data: plain JSON data.

    Raises:
        ValueError: a number is NaN or infinite, which JSON does not have.
    """
    write_text(path, json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Writes tensors as a safetensors file.

    Args:
        path: the file, which does not exist.
        tensors: contiguous tensors by name, on the CPU.
    """
    from safetensors.torch import save_file

    save_file(dict(tensors), path, metadata={"format": "pt"})
    readable_as_new(path)


def readable_as_new(path: Path) -> None:
    """Gives a file the permissions of a new one, as the user's mask has them.

    Libraries write weights to temporary files, which only their user may read, and rename them.

    Args:
        path: the file.
    """
    trial = path.with_name(f".{path.name}.permissions")
    with open(trial, "xb") as stream:
        mode = os.fstat(stream.fileno()).st_mode
    trial.unlink()
    path.chmod(mode & 0o777)
