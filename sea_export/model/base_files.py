"""The files of a base, which must be the same from when they are first read until the output appears.

A library reads the weights, perhaps several times, and not through this package. So what a file is at any time is told
from its state in the file system: place, size, and the times of the last change of contents and of status. No program
can set the latter. Where a state has changed without the contents, because a file was linked or its mode was changed,
the digests decide. They are taken in another thread while the file is first read.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from threading import Event
from types import TracebackType

from sea_export.errors import SeaExportError
from sea_export.files.digests import file_digest

__all__ = ["BaseFiles"]


class BaseFiles:
    """A context in which the files of a base are expected to stay as they are.

    Args:
        directory: the directory of the base.
        files: paths relative to it.
    """

    def __init__(self, directory: Path, files: Iterable[str]) -> None:
        self._directory = directory
        self._states = {file: _state(directory / file) for file in files}
        self._digests: dict[str, Future[str]] = {}
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._ended = Event()

    def __enter__(self) -> BaseFiles:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.shutdown(cancel_futures=True)

    def begin_digests(self, files: Iterable[str]) -> None:
        """Begins to compute the digests of some files in another thread.

        Args:
            files: those that a library is about to read.
        """
        for file in files:
            if file not in self._digests:
                self._digests[file] = self._thread.submit(self._digest, file)

    def digests(self, files: Iterable[str]) -> Mapping[str, str]:
        """SHA-256 of some files, in hexadecimal, as they were when they were first read.

        Args:
            files: paths relative to the directory.

        Raises:
            SeaExportError: one of them has changed since the base was opened.
        """
        files = tuple(files)
        self.begin_digests(files)
        return {file: self._digests[file].result() for file in files}

    def known_digests(self) -> dict[str, str]:
        """SHA-256 of those files of which it was computed already, in hexadecimal."""
        done = {file: one for file, one in self._digests.items() if one.done() and one.exception() is None}
        return {file: one.result() for file, one in done.items()}

    def check(self) -> None:
        """Compares all files with what they were.

        Raises:
            SeaExportError: one of them has changed since the base was opened.
        """
        for file, state in self._states.items():
            path = self._directory / file
            if _state(path) == state:
                continue
            if state is None or file not in self._digests or not path.is_file():
                raise SeaExportError(_changed(path))
            if file_digest(path) != self._digests[file].result():
                raise SeaExportError(_changed(path))

    def _digest(self, file: str) -> str:
        path = self._directory / file
        digest = file_digest(path, stop=self._ended)
        if _state(path) != self._states[file]:
            raise SeaExportError(_changed(path))
        return digest


def _state(path: Path) -> tuple[int, ...] | None:
    """What changes whenever a file does; None if there is no such file, or a link that leads nowhere."""
    try:
        status = os.stat(path)
    except OSError:  # whatever reads the file tells what is wrong with it
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _changed(path: Path) -> str:
    return (
        f"{path}: it has changed since the base was opened, so that the edit and the output would be of different "
        "models. Make sure that nothing writes to the base, and run it again."
    )
