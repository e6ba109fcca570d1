"""A copy of one file in a single pass, with some of its bytes replaced, and the digests of source and copy."""

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
from sea_export.files.cloning import share_blocks

if TYPE_CHECKING:
    from hashlib import _Hash

__all__ = ["FileCopy"]

# In bytes. Small enough to stay in the processor's cache between reading, hashing and writing.
_CHUNK_BYTES = 1 << 19
_SEND_BYTES = 8 << 20


class FileCopy:
    """A context in which the file at `source` is copied to `destination`, from start to end.

    What is read is either copied, or taken out to be replaced. Where the file system can, the copy shares the blocks of
    the source, and only what is replaced is written. Most of the time goes into SHA-256. Until something is
    replaced, source and copy have the same digest. From then on another thread computes the digest of the source: it
    reads the source a second time, while the system still has in memory what was read. If the digest of the source is
    known, it is not computed again, and a copy without a change is left to the system.

    Args:
        source: the file to read.
        destination: the file to create, which must not exist.
        progress: called after each write with the number of bytes written.
        known: the SHA-256 of the source in hexadecimal, if somebody has it, who makes sure that it stays so.
    """

    def __init__(
        self, source: Path, destination: Path, *, progress: Callable[[int], None], known: str | None = None
    ) -> None:
        self._path = source
        self._progress = progress
        self._known = known
        self._left_to_system = False
        self._source = open(source, "rb")  # noqa: SIM115 - closed by __exit__
        try:
            self._destination = open(destination, "xb")  # noqa: SIM115
        except BaseException:
            self._source.close()
            raise
        self._state = self._state_of_source()
        self._shared = share_blocks(self._source, self._destination)
        self._buffer = memoryview(bytearray(_CHUNK_BYTES))
        self._digest = hashlib.sha256()
        self._source_digest: Future[str] | None = None
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._ended = Event()
        self._written = 0
        self._sent = 0
        self._asked = 0
        self.size = self._state[0]
        """The size of the source in bytes."""
        self.position = 0
        """The number of bytes of the source that have been read."""

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
        """Copies the next bytes of the source as they are.

        Args:
            count: how many bytes.

        Raises:
            SeaExportError: the source has fewer.
        """
        while count > 0:
            view = self._buffer[:count]
            # Bytes that keep their place are in a file of shared blocks already.
            present = self._shared and self._written == self.position
            self._read(view)
            self._write(view, present=present)
            count -= len(view)

    def copy_rest(self) -> None:
        """Copies the rest of the source as it is.

        Raises:
            SeaExportError: the source has become shorter.
        """
        if self.position == 0 and self._known is not None:
            self._leave_to_system()
        self.copy(self.size - self.position)

    def take(self, count: int) -> torch.Tensor:
        """Reads the next bytes of the source without writing them.

        Args:
            count: how many bytes.

        Returns:
            (count,) uint8.

        Raises:
            SeaExportError: the source has fewer.
        """
        self._part_digests()
        data = torch.empty(count, dtype=torch.uint8)
        self._read(data.numpy().data)
        return data

    def put(self, data: memoryview) -> None:
        """Writes data that is not from the source.

        Args:
            data: the bytes.
        """
        self._part_digests()
        self._write(data)

    def digests(self) -> tuple[str, str]:
        """The SHA-256 of the source and of the destination, in hexadecimal, when the copy is complete.

        Raises:
            SeaExportError: the source was not read to its end, or it changed while it was read.
        """
        if self._shared:
            self._destination.truncate(self._written)
        written = self._known if self._left_to_system and self._known else self._digest.hexdigest()
        source = self._known or (written if self._source_digest is None else self._source_digest.result())
        if self.position != self.size or self._state_of_source() != self._state:
            raise SeaExportError(self._changed())
        return source, written

    def _changed(self) -> str:
        return f"{self._path}: it changed while it was copied. Make sure that nothing writes to it."

    def _shorter(self) -> str:
        return f"{self._path}: it became shorter while it was copied. Make sure that nothing writes to it."

    def _part_digests(self) -> None:
        if self._source_digest is None and self._known is None:
            self._source_digest = self._thread.submit(self._digest_source, self._digest.copy(), self.position)

    def _digest_source(self, digest: _Hash, position: int) -> str:
        """The digest of the source, continued from `digest`, which has its first `position` bytes."""
        buffer = memoryview(bytearray(_CHUNK_BYTES))
        while not self._ended.is_set() and (count := os.preadv(self._source.fileno(), [buffer], position)):
            digest.update(buffer[:count])
            position += count
        if position != self.size:
            raise SeaExportError(self._changed())
        return digest.hexdigest()

    def _leave_to_system(self) -> None:
        """Copies the whole source inside the system, or nothing of it if the system cannot do that."""
        ends = self._source.fileno(), self._destination.fileno()
        while self.position < self.size:
            count = min(_SEND_BYTES, self.size - self.position)
            if not self._shared:
                try:
                    count = os.copy_file_range(*ends, count, self.position, self.position)
                except (AttributeError, OSError):  # another system, or another file system
                    if self.position > 0:
                        raise
                    return
            if count == 0:
                raise SeaExportError(self._shorter())
            self.position += count
            self._written += count
            self._progress(count)
        self._left_to_system = True

    def _read(self, view: memoryview) -> None:
        if self._source.readinto(view) != len(view):
            raise SeaExportError(self._shorter())
        self.position += len(view)
        if self.position + _SEND_BYTES > self._asked and hasattr(os, "posix_fadvise"):
            # The system reads ahead, while the processor hashes what was read.
            os.posix_fadvise(self._source.fileno(), self._asked, 2 * _SEND_BYTES, os.POSIX_FADV_WILLNEED)
            self._asked += 2 * _SEND_BYTES

    def _write(self, view: memoryview, *, present: bool = False) -> None:
        self._digest.update(view)
        if not present:
            if self._shared:
                self._destination.seek(self._written)
            self._destination.write(view)
        self._written += len(view)
        if self._written - self._sent >= _SEND_BYTES and hasattr(os, "posix_fadvise"):
            # The system begins to write these pages to the disk, while the processor hashes the next ones.
            region = self._sent, self._written - self._sent
            os.posix_fadvise(self._destination.fileno(), *region, os.POSIX_FADV_DONTNEED)
            self._sent = self._written
        self._progress(len(view))

    def _state_of_source(self) -> tuple[int, int]:
        status = os.fstat(self._source.fileno())
        return status.st_size, status.st_mtime_ns
