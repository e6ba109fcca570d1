"""SHA-256 of files, read in pieces."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from sea_export.errors import SeaExportError

__all__ = ["file_digest", "file_digests"]

_CHUNK_BYTES = 1 << 20


def file_digest(path: Path) -> str:
    """The SHA-256 of the file at `path`, in hexadecimal.

    Raises:
        SeaExportError: the file became shorter or longer meanwhile.
    """
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(_CHUNK_BYTES))
    with open(path, "rb", buffering=0) as stream:
        size = os.fstat(stream.fileno()).st_size
        while count := stream.readinto(buffer):
            digest.update(buffer[:count])
            size -= count
    if size:
        raise SeaExportError(f"{path} changed while it was read; make sure nothing writes to it.")
    return digest.hexdigest()


def file_digests(directory: Path) -> dict[str, str]:
    """SHA-256 of every file below `directory`, in hexadecimal, by sorted POSIX path relative to it."""
    files = sorted(path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file())
    return {file: file_digest(directory / file) for file in files}
