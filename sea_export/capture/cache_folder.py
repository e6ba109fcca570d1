"""Folders of a cache directory: one for each combination of what decides the contents, with parts in it.

A part is a safetensors file. It appears when it is complete, and it never changes. So an interrupted run loses only
what it was computing, and several runs can use a cache at the same time. Unfinished parts of killed runs are removed by
the next run.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from sea_export.errors import InputError, SeaExportError, first_line, reason
from sea_export.files.writing import flush
from sea_export.locks import scratch_directory

__all__ = ["CacheFolder", "cached_bytes", "reading_part"]

_SUFFIX = ".safetensors"
_KEY_DIGITS = 32


class CacheFolder:
    """The folder of a cache directory that belongs to one key."""

    def __init__(self, directory: Path, key: Mapping[str, Any]) -> None:
        """Opens the folder, or makes it.

        Args:
            directory: the cache directory, made if it is missing.
            key: everything that decides the contents, as plain JSON data.

        Raises:
            InputError: the directory cannot be used.
        """
        self.path = _place(directory, key)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._write("key.json", lambda file: file.write_text(_text(key) + "\n", encoding="utf-8"))
        except OSError as error:
            raise InputError(
                f"--cache: {directory} cannot be used ({error.strerror}). Choose another directory."
            ) from error

    @classmethod
    def existing(cls, directory: Path, key: Mapping[str, Any]) -> CacheFolder | None:
        """The folder of a key; None if there is none.

        Args:
            directory: see the constructor.
            key: see the constructor.

        Raises:
            InputError: see the constructor.
        """
        return cls(directory, key) if _place(directory, key).is_dir() else None

    @property
    def parts(self) -> list[Path]:
        """The complete parts."""
        return sorted(self.path.glob(f"*{_SUFFIX}"))

    def add(self, tensors: Mapping[str, Tensor], what: str) -> Path:
        """Writes a part.

        Args:
            tensors: its contents.
            what: what they are, for messages.

        Raises:
            SeaExportError: the disk is full, or fails.
        """
        contents = dict(tensors)
        try:
            return self._write(f"{secrets.token_hex(8)}{_SUFFIX}", lambda file: save_file(contents, file))
        except (OSError, SafetensorError) as error:
            raise SeaExportError(
                f"{self.path}: {what} could not be written there ({reason(error)}). Make room and run again. What is "
                "there already is used."
            ) from error

    def _write(self, name: str, write: Callable[[Path], object]) -> Path:
        """Writes a file, which appears in the folder when it is complete."""
        with scratch_directory(".unfinished-", self.path) as scratch:
            unfinished = scratch / "file"
            write(unfinished)
            flush(unfinished)
            return unfinished.replace(self.path / name)


def _text(key: Mapping[str, Any]) -> str:
    return json.dumps(key, indent=2, sort_keys=True)


def _place(directory: Path, key: Mapping[str, Any]) -> Path:
    return directory / hashlib.sha256(_text(key).encode()).hexdigest()[:_KEY_DIGITS]


@contextmanager
def reading_part(file: Path) -> Iterator[None]:
    """A context in which a part is read: whatever is wrong with it becomes one InputError that names it."""
    try:
        yield
    except (SafetensorError, OSError, ValueError, InputError) as error:
        raise InputError(f"{file}: this part of the cache is damaged ({first_line(error)}). Remove it.") from error


def cached_bytes(directory: Path) -> int:
    """The size in bytes of everything in a cache directory, of all models and demonstrations."""
    return sum(file.stat().st_size for file in directory.glob(f"*/*{_SUFFIX}"))
