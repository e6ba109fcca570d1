"""Copying one file in a single pass: some of its bytes replaced on the way, the digests of both taken."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from itertools import cycle
from pathlib import Path
from types import TracebackType

import torch

from sea_export.errors import SeaExportError

__all__ = ["FileCopy"]

# Small enough to stay in the processor's cache between reading, hashing and writing.
_CHUNK_BYTES = 1 << 19
_CHUNKS = 8
_SEND_BYTES = 8 << 20


class FileCopy:
    """A context in which the file at `source` is read once from start to end and `destination` is written.

    What is read is copied, or taken out to be replaced. SHA-256, by far the most work of a copy, is computed on
    threads of their own; as long as nothing was replaced, the source's digest is the destination's too.

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
        self._buffers = cycle([_Buffer() for _ in range(_CHUNKS)])
        self._read_digest = _Digest()
        self._written_digest = self._read_digest
        self._pending: list[Future[None]] = []
        self._written = 0
        self._sent = 0
        self.size = self._state[0]
        """Bytes in the source."""
        self.position = 0
        """How many of them have been read."""

    def __enter__(self) -> FileCopy:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._read_digest.close()
        self._written_digest.close()
        self._source.close()
        self._destination.close()

    def copy(self, count: int) -> None:
        """Write the next `count` bytes of the source as they are.

        Raises:
            SeaExportError: the source has fewer.
        """
        while count > 0:
            buffer = next(self._buffers)
            wait(buffer.hashing)
            view = buffer.memory[:count]
            self._read(view)
            digests = {self._read_digest, self._written_digest}
            buffer.hashing = [digest.update(view) for digest in digests]
            self._write(view)
            count -= len(view)

    def copy_rest(self) -> None:
        """Write what is left of the source as it is."""
        self.copy(self.size - self.position)

    def take(self, count: int) -> torch.Tensor:
        """Read the next `count` bytes without writing them. They must not be changed.

        Returns:
            (count,), uint8.

        Raises:
            SeaExportError: the source has fewer.
        """
        if self._written_digest is self._read_digest:
            self._written_digest = self._read_digest.fork()
        data = torch.empty(count, dtype=torch.uint8)
        view = data.numpy().data
        self._read(view)
        self._pending.append(self._read_digest.update(view))
        return data

    def put(self, data: memoryview) -> None:
        """Write `data`, which is not from the source. It must not be changed afterwards."""
        if self._written_digest is self._read_digest:
            self._written_digest = self._read_digest.fork()
        self._pending.append(self._written_digest.update(data))
        self._write(data)

    def settle(self) -> None:
        """Wait until what was taken and put is hashed, so that nothing here keeps it in memory."""
        wait(self._pending)
        self._pending.clear()

    def digests(self) -> tuple[str, str]:
        """SHA-256, in hexadecimal, of the source and of the destination. Both must be complete.

        Raises:
            SeaExportError: the source was not read to its end, or was changed while it was read.
        """
        if self.position != self.size or self._state_of_source() != self._state:
            raise SeaExportError(f"{self._path} changed while it was copied; make sure nothing writes to it.")
        return self._read_digest.hexadecimal(), self._written_digest.hexadecimal()

    def _read(self, view: memoryview) -> None:
        if self._source.readinto(view) != len(view):
            raise SeaExportError(f"{self._path} became shorter while it was copied; make sure nothing writes to it.")
        self.position += len(view)

    def _write(self, view: memoryview) -> None:
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


class _Buffer:
    """Memory for one chunk, free again once the digests of what it holds are done."""

    def __init__(self) -> None:
        self.memory = memoryview(bytearray(_CHUNK_BYTES))
        self.hashing: list[Future[None]] = []


class _Digest:
    """A SHA-256 computed on a thread of its own, in the order of the updates."""

    def __init__(self) -> None:
        self._sha256 = hashlib.sha256()
        self._thread = ThreadPoolExecutor(max_workers=1)

    def update(self, data: memoryview) -> Future[None]:
        """Add `data`, which must stay as it is until the future is done."""
        return self._thread.submit(self._sha256.update, data)

    def fork(self) -> _Digest:
        """Another digest that goes on from here."""
        other = _Digest()
        other._sha256 = self._thread.submit(self._sha256.copy).result()
        return other

    def hexadecimal(self) -> str:
        return self._thread.submit(self._sha256.hexdigest).result()

    def close(self) -> None:
        self._thread.shutdown(cancel_futures=True)
