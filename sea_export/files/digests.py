"""SHA-256 of files, read in pieces."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from threading import Event

from sea_export.errors import SeaExportError

__all__ = ["file_digest", "file_digests"]

_CHUNK_BYTES = 1 << 20


def file_digest(path: Path, *, stop: Event | None = None) -> str:
    """The SHA-256 of a file, in hexadecimal.

    Args:
        path: the file.
        stop: ends the reading, with an error, when it is set; None if nothing ends it.

    Raises:
        SeaExportError: the size of the file changed while it was read, or the reading was ended.
    """
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(_CHUNK_BYTES))
    with open(path, "rb", buffering=0) as stream:
        size = os.fstat(stream.fileno()).st_size
        while not (stop and stop.is_set()) and (count := stream.readinto(buffer)):
            digest.update(buffer[:count])
            size -= count
    if size:
        raise SeaExportError(f"{path}: it changed while it was read. Make sure that nothing writes to it.")
    return digest.hexdigest()


def file_digests(directory: Path) -> dict[str, str]:
    """The SHA-256, in hexadecimal, of every file below a directory, by POSIX path relative to it, sorted."""
    files = sorted(path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file())
    return {file: file_digest(directory / file) for file in files}
