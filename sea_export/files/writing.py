"""Files that are completely on the disk, or not at all."""

from __future__ import annotations

import json
import os
from pathlib import Path

from sea_export.errors import InputError

__all__ = ["check_directory", "flush", "write_json", "write_text"]


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
