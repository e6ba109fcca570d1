"""Directories that belong to one living process at a time.

A process that works in a directory holds a lock on it, which the system releases when the process dies. So what a
killed process has left is told apart from what a living one works in, and the next process removes it.

The lock is on the directory itself: `filelock.FileLock` needs a file of its own, which would be one more file in a
checkpoint or beside it, and would not move with a directory that is renamed into place. Of the library only the
system's lock on an open descriptor is used.
"""

from __future__ import annotations

import os
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import lock_descriptor

__all__ = ["Locked", "locked_directory", "remove_leftovers", "scratch_directory", "taking_turns"]

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
_PATIENCE_SECONDS = 0.1


class Locked(Exception):
    """The directory belongs to another process that lives, or it cannot be known whether that process lives."""


@contextmanager
def locked_directory(path: Path, *, mode: int = 0o777) -> Iterator[None]:
    """Makes `path` a directory that no other process takes, and removes it when the context ends.

    Args:
        path: a directory, which may hold what a killed process has left; or nothing is there, but its parent exists. If
            it was moved before the context ends, it is left alone.
        mode: its permissions, before the user's mask is applied.

    Raises:
        Locked: another process has it.
    """
    descriptor = _open_locked(path, mode)
    try:
        yield
    finally:
        try:
            if _is_at(descriptor, path):
                _remove(path)
        finally:
            os.close(descriptor)


@contextmanager
def scratch_directory(prefix: str, parent: Path) -> Iterator[Path]:
    """Makes a new directory in `parent`, which only the user may read, and removes it when the context ends.

    Directories that killed processes have left there under the same prefix are removed first.

    Args:
        prefix: the beginning of its name. No other kind of file in `parent` has it.
        parent: an existing directory.

    Yields:
        The directory, empty.
    """
    remove_leftovers(prefix, parent)
    path = parent / f"{prefix}{secrets.token_hex(8)}"
    with locked_directory(path, mode=0o700):
        yield path


@contextmanager
def taking_turns(path: Path) -> Iterator[None]:
    """Waits until no other process is in this context for the same file or directory.

    Args:
        path: an existing file or directory. On a file system without locks nobody waits.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks
            lock_descriptor(descriptor)
        yield
    finally:
        os.close(descriptor)


def remove_leftovers(prefix: str, parent: Path) -> None:
    """Removes directories that killed processes have left.

    Args:
        prefix: the beginning of their names.
        parent: where they are.
    """
    for path in [path for path in parent.iterdir() if path.name.startswith(prefix)]:
        try:
            descriptor = os.open(path, _DIRECTORY)
        except OSError:
            continue  # removed meanwhile, or another user's
        try:
            if os.fstat(descriptor).st_uid == os.getuid() and lock_descriptor(descriptor, blocking=False):
                _remove(path)
        except OSError:
            continue  # on a file system that cannot tell whether its process lives
        finally:
            os.close(descriptor)


def _open_locked(path: Path, mode: int) -> int:
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
            continue  # the process that had it has just ended
        try:
            _lock(descriptor, made=made)
            if _is_at(descriptor, path):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _lock(descriptor: int, *, made: bool) -> None:
    """Raises Locked if a directory cannot be locked; `made` tells whether this process made it."""
    try:
        locked = _lock_patiently(descriptor)
    except OSError as error:
        # On a file system without locks the process that made it may live, and a later one cannot know.
        if not made:
            raise Locked from error
        return
    if not locked:
        raise Locked


def _lock_patiently(descriptor: int) -> bool:
    """Locks an open directory, unless another process has it for longer than one that only asks or removes would."""
    end = time.monotonic() + _PATIENCE_SECONDS
    while not lock_descriptor(descriptor, blocking=False):
        if time.monotonic() > end:
            return False
        time.sleep(_PATIENCE_SECONDS / 10)
    return True


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether the open directory has not been moved or removed."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _remove(path: Path) -> None:
    """Removes a file, or as much of a directory as can be removed. An interrupt is raised when that is done."""
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
        return
    try:
        shutil.rmtree(path, ignore_errors=True)
    except BaseException:
        shutil.rmtree(path, ignore_errors=True)
        raise
