"""Standard output and standard error that last as long as the program, whatever is at their other end.

A program that reads them may end, a terminal may be closed or have few letters, a stream may be closed from the start.
None of these is a reason to stop work, or to end with another exit status.
"""

from __future__ import annotations

import errno
import io
import os
import select
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

__all__ = ["lasting_streams"]

# Nobody reads the pipe any more; the terminal has gone.
_NOBODY = (errno.EPIPE, errno.EIO)


class _LastingFile(io.FileIO):
    """A descriptor to which everything can be written. What nobody can read any more is dropped.

    An error of another kind, such as a full disk, is raised once, unless it is to be dropped too.
    """

    def __init__(self, descriptor: int, *, drops_all_errors: bool) -> None:
        super().__init__(descriptor, "w", closefd=False)
        self._drops_all_errors = drops_all_errors
        self._lost = False

    def write(self, data: ReadableBuffer) -> int:
        size = memoryview(data).nbytes
        if self._lost:
            return size
        try:
            while True:
                # The type of FileIO does not say that nothing is written when a reader is slow and nobody may wait.
                written: int | None = super().write(data)
                if written is not None:
                    return written
                select.select([], [self], [])
        except OSError as error:
            self._lost = True
            if self._drops_all_errors or error.errno in _NOBODY:
                return size
            raise


@contextmanager
def lasting_streams() -> Iterator[None]:
    """A context in which standard output and standard error last. Streams that a caller has replaced stay as they are.

    Raises:
        OSError: at the end, if the last part of the output could not be written.
    """
    _open_descriptors()
    before = sys.stdout, sys.stderr
    sys.stdout = _lasting(sys.stdout, sys.__stdout__, 1)
    sys.stderr = _lasting(sys.stderr, sys.__stderr__, 2)
    try:
        yield
    finally:
        try:
            sys.stdout.flush()
        finally:
            sys.stderr.flush()
            sys.stdout, sys.stderr = before


def _open_descriptors() -> None:
    """Opens those of the three standard descriptors that are closed, so that no other file gets their numbers."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free


def _lasting(stream: TextIO | None, own: TextIO | None, descriptor: int) -> Any:
    """A stream to the same place that lasts, if it is Python's own. A letter that it does not have is escaped."""
    if stream is not own:
        return stream
    if stream is not None:
        stream.flush()
    encoding, buffered = ("utf-8", False) if stream is None else (stream.encoding, not stream.isatty())
    file = io.BufferedWriter(_LastingFile(descriptor, drops_all_errors=descriptor == 2))
    line_buffering = descriptor == 2 or not buffered
    return io.TextIOWrapper(file, encoding, errors="backslashreplace", line_buffering=line_buffering)
