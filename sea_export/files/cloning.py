"""Copies of files that share their blocks on the disk (reflinks), where the file system can make them."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import BinaryIO

__all__ = ["can_clone", "clone_file", "share_blocks"]

_FICLONE = 0x40049409  # from <linux/fs.h>: make one file share the blocks of another; a change of one copies its blocks


def clone_file(source: Path, destination: Path) -> bool:
    """Makes a copy of a file that takes no time and no room, if the file system can.

    Args:
        source: the file.
        destination: the copy, which must not exist.

    Returns:
        Whether there is a copy now.
    """
    with open(source, "rb") as read, open(destination, "xb") as written:
        if share_blocks(read, written):
            return True
    destination.unlink()
    return False


def can_clone(source: Path, directory: Path) -> bool:
    """Whether `clone_file` can copy a file into a directory, found out with a file without a name.

    Args:
        source: the file.
        directory: an existing directory that can be written to.
    """
    with open(source, "rb") as read, tempfile.TemporaryFile(dir=directory) as written:
        return share_blocks(read, written)


def share_blocks(source: BinaryIO, destination: BinaryIO) -> bool:
    """Gives an empty file the contents of another, if the file system can let them share their blocks.

    Args:
        source: the file, open for reading.
        destination: the empty file, open for writing.

    Returns:
        Whether it has the contents now. If not, it is still empty.
    """
    if sys.platform != "linux":
        return False
    import fcntl

    try:
        fcntl.ioctl(destination.fileno(), _FICLONE, source.fileno())
    except OSError:  # another file system, or one that cannot
        return False
    return True
