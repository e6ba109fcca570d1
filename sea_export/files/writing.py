"""Files that are on the disk as a whole, or not at all."""

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
    """Write a file, which appears, or takes the place of the one that is there, as a whole."""
    unfinished = path.with_name(f".{path.name}.unfinished")
    try:
        unfinished.write_text(text, encoding="utf-8")
        flush(unfinished)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Have a file, or the entries of a directory, on the disk: they outlast a power failure."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, data: object) -> None:
    """Write `data` as indented JSON. Raises ValueError for numbers that JSON does not have (NaN, infinities)."""
    write_text(path, json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
