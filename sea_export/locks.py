"""Directories that belong to one living process at a time.

Who works in a directory holds a lock on it, which the system takes away when the process dies. So what a killed
process has left is told apart from what a living one works in, and is removed by the next that comes by.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["Locked", "is_locked", "locked_directory", "remove_leftovers", "scratch_directory", "taking_turns"]

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
_PATIENCE_SECONDS = 0.1


class Locked(Exception):
    """The directory belongs to another process that lives, or that may live for all that can be known."""


@contextmanager
def locked_directory(path: Path, *, mode: int = 0o777) -> Iterator[None]:
    """Has `path` as an empty directory that no other process takes. It is removed when the context ends, however.

    Args:
        path: it may hold what a killed process has left, which is removed; its parent exists. It may have been moved
            by the end of the context, and is left alone then.
        mode: its permissions, less the user's mask.

    Raises:
        Locked: another process has it.
    """
    descriptor = _claim(path, mode)
    try:
        for leftover in path.iterdir():
            _remove(leftover)
        yield
    finally:
        try:
            if _is_at(descriptor, path):
                _remove(path)
        finally:
            os.close(descriptor)


@contextmanager
def scratch_directory(prefix: str, parent: Path) -> Iterator[Path]:
    """Has a new directory in `parent`, which only the user may read.

    Those that killed processes have left there under the same prefix are removed.

    Args:
        prefix: what its name begins with, and that of nothing else there.
        parent: an existing directory.

    Yields:
        The directory, empty.
    """
    remove_leftovers(prefix, parent)
    path = parent / f"{prefix}{secrets.token_hex(8)}"
    with locked_directory(path, mode=0o700):
        yield path


@contextmanager
def taking_turns(directory: Path) -> Iterator[None]:
    """Waits until no other process is in this context for the same directory."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def remove_leftovers(prefix: str, parent: Path) -> None:
    """Removes the directories that killed processes have left in `parent`, under names that begin with `prefix`."""
    for path in [path for path in parent.iterdir() if path.name.startswith(prefix)]:
        try:
            descriptor = os.open(path, _DIRECTORY)
        except OSError:
            continue  # gone by now, or not ours
        try:
            if os.fstat(descriptor).st_uid == os.getuid():
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _remove(path)
        except OSError:
            continue  # alive, or on a file system that cannot tell
        finally:
            os.close(descriptor)


def is_locked(path: Path) -> bool:
    """Whether a living process has the directory at `path`."""
    try:
        descriptor = os.open(path, _DIRECTORY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return False


def _claim(path: Path, mode: int) -> int:
    """A descriptor that holds the lock of the directory at `path`, which is made if it is missing."""
    while True:
        try:
            path.mkdir(mode)
            made = True
        except FileExistsError:
            made = False
        try:
            descriptor = os.open(path, _DIRECTORY)
        except FileNotFoundError:
            continue  # who had it has just ended
        try:
            _lock(descriptor, made=made)
            if _is_at(descriptor, path):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _lock(descriptor: int, *, made: bool) -> None:
    """Raises Locked if the lock of a directory cannot be had; `made` tells whether this process made it."""
    end = time.monotonic() + _PATIENCE_SECONDS
    while True:
        try:
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if time.monotonic() > end:  # so it is not just somebody who asks whether it is claimed
                raise Locked from error
            time.sleep(_PATIENCE_SECONDS / 10)
        except OSError as error:
            # A file system without locks: who made it may live, and who comes later cannot know.
            if made:
                return None
            raise Locked from error


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether the open directory has not been moved or removed."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _remove(path: Path) -> None:
    """Removes a file, or as much of a directory as can be; an interrupt is heeded when that is done."""
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
        return
    try:
        shutil.rmtree(path, ignore_errors=True)
    except BaseException:
        shutil.rmtree(path, ignore_errors=True)
        raise
