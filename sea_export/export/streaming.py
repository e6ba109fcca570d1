"""Copying one file in a single pass: some of its bytes replaced on the way, the digests of both taken."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from threading import Event
from types import TracebackType
from typing import TYPE_CHECKING

import torch

from sea_export.errors import SeaExportError

if TYPE_CHECKING:
    from hashlib import _Hash

__all__ = ["FileCopy"]

# Small enough to stay in the processor's cache between reading, hashing and writing.
_CHUNK_BYTES = 1 << 19
_SEND_BYTES = 8 << 20


class FileCopy:
    """A context in which the file at `source` is copied to `destination`, from start to end.

    What is read is copied, or taken out to be replaced. SHA-256 is by far the most work of it. As long as nothing was
    replaced, the source's digest is the destination's too; from there on another thread takes it, reading the source
    a second time while the system still holds what was read.

    Args:
        source: the file to read.
        destination: the file to create; it must not exist.
        progress: called with the number of bytes after each write.
    """

    def __init__(self, source: Path, destination: Path, *, progress: Callable[[int], None]) -> None:
        self._path = source
        self._progress = progress
        self._source = open(source, "rb")  # noqa: SIM115 - closed by __exit__
        try:
            self._destination = open(destination, "xb")  # noqa: SIM115
        except BaseException:
            self._source.close()
            raise
        self._state = self._state_of_source()
        self._buffer = memoryview(bytearray(_CHUNK_BYTES))
        self._digest = hashlib.sha256()
        self._source_digest: Future[str] | None = None
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._ended = Event()
        self._written = 0
        self._sent = 0
        self._asked = 0
        self.size = self._state[0]
        """Bytes in the source."""
        self.position = 0
        """How many of them have been read."""

    def __enter__(self) -> FileCopy:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.shutdown()
        self._source.close()
        self._destination.close()

    def copy(self, count: int) -> None:
        """Write the next `count` bytes of the source as they are.

        Raises:
            SeaExportError: the source has fewer.
        """
        while count > 0:
            view = self._buffer[:count]
            self._read(view)
            self._write(view)
            count -= len(view)

    def copy_rest(self) -> None:
        """Write what is left of the source as it is."""
        self.copy(self.size - self.position)

    def take(self, count: int) -> torch.Tensor:
        """Read the next `count` bytes without writing them.

        Returns:
            (count,), uint8.

        Raises:
            SeaExportError: the source has fewer.
        """
        self._part_digests()
        data = torch.empty(count, dtype=torch.uint8)
        self._read(data.numpy().data)
        return data

    def put(self, data: memoryview) -> None:
        """Write `data`, which is not from the source."""
        self._part_digests()
        self._write(data)

    def digests(self) -> tuple[str, str]:
        """SHA-256, in hexadecimal, of the source and of the destination. Both must be complete.

        Raises:
            SeaExportError: the source was not read to its end, or was changed while it was read.
        """
        written = self._digest.hexdigest()
        source = written if self._source_digest is None else self._source_digest.result()
        if self.position != self.size or self._state_of_source() != self._state:
            raise SeaExportError(self._changed())
        return source, written

    def _changed(self) -> str:
        return f"{self._path} changed while it was copied; make sure nothing writes to it."

    def _part_digests(self) -> None:
        if self._source_digest is None:
            self._source_digest = self._thread.submit(self._digest_source, self._digest.copy(), self.position)

    def _digest_source(self, digest: _Hash, position: int) -> str:
        """The digest of the source, of which the first `position` bytes are in `digest`."""
        buffer = memoryview(bytearray(_CHUNK_BYTES))
        while not self._ended.is_set() and (count := os.preadv(self._source.fileno(), [buffer], position)):
            digest.update(buffer[:count])
            position += count
        if position != self.size:
            raise SeaExportError(self._changed())
        return digest.hexdigest()

    def _read(self, view: memoryview) -> None:
        if self._source.readinto(view) != len(view):
            raise SeaExportError(f"{self._path} became shorter while it was copied; make sure nothing writes to it.")
        self.position += len(view)
        if self.position + _SEND_BYTES > self._asked and hasattr(os, "posix_fadvise"):
            # Has the system read ahead, while the processor hashes what it has.
            os.posix_fadvise(self._source.fileno(), self._asked, 2 * _SEND_BYTES, os.POSIX_FADV_WILLNEED)
            self._asked += 2 * _SEND_BYTES

    def _write(self, view: memoryview) -> None:
        self._digest.update(view)
        self._destination.write(view)
        self._written += len(view)
        if self._written - self._sent >= _SEND_BYTES and hasattr(os, "posix_fadvise"):
            # Has the system begin to write these pages to the disk, while the processor hashes the next ones.
            region = self._sent, self._written - self._sent
            os.posix_fadvise(self._destination.fileno(), *region, os.POSIX_FADV_DONTNEED)
            self._sent = self._written
        self._progress(len(view))

    def _state_of_source(self) -> tuple[int, int]:
        status = os.fstat(self._source.fileno())
        return status.st_size, status.st_mtime_ns
