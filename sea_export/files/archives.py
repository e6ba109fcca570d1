"""Zip archives of unknown origin."""

from __future__ import annotations

from typing import BinaryIO

__all__ = ["directory_bytes"]

_END_BYTES = 70_000


def directory_bytes(stream: BinaryIO) -> int:
    """The size in bytes of a zip archive's list of files, as the end of the archive gives it.

    It is to be checked first, because zipfile reads the whole list into memory.

    Args:
        stream: the archive. Its position changes.
    """
    size = stream.seek(0, 2)
    stream.seek(max(0, size - _END_BYTES))
    tail = stream.read()
    end = tail.rfind(b"PK\5\6")
    listed = int.from_bytes(tail[end + 12 : end + 16], "little")
    large = tail.rfind(b"PK\6\6", 0, end)  # for a large archive, the record before it has the sizes
    return max(listed, int.from_bytes(tail[large + 40 : large + 48], "little")) if large >= 0 else listed
