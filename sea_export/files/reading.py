"""Files that somebody else wrote: which ones are opened, where they may be, and how much of them is read into memory.

All files of checkpoints and edits that this package reads by itself are opened here. They may be from anywhere. So a
named pipe cannot stop the program, a link cannot lead it out of the directory, and a small file that would become
gigabytes of objects cannot fill the memory.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from sea_export.errors import InputError

__all__ = ["MAXIMUM_JSON_BYTES", "check_contained", "open_file", "parse_json", "read_json", "read_json_object"]

MAXIMUM_JSON_BYTES = 64_000_000
"""The largest size of a JSON file or a safetensors header: several times that of the largest published ones."""

# An empty list is 3 bytes of text and 80 bytes of memory, and a key of an object is more. So many need 500 MB at most.
_MAXIMUM_JSON_VALUES = 2_500_000
_MAXIMUM_JSON_DEPTH = 100
_HALF_CHARACTER = re.compile(rb"\\u[dD][89a-fA-F]")


def open_file(path: Path) -> BinaryIO:
    """Opens a file for reading bytes.

    Args:
        path: the file.

    Raises:
        InputError: it is missing, unreadable, or not a regular file.
    """
    try:
        # Without waiting, because a pipe to which nobody writes would never open.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            return open(descriptor, "rb")
        os.close(descriptor)
    except OSError as error:
        raise InputError(
            f"{path}: it cannot be read ({error.strerror}). Check the path and its permissions."
        ) from error
    raise InputError(f"{path}: it cannot be read, because it is not a file. Check the path.")


def check_contained(path: Path, directory: Path) -> None:
    """Refuses a link that leads out of a directory.

    The cache of the Hub consists of links. Those of a snapshot may lead into the `blobs` folder of its repository, or
    into the one that all repositories of the cache share.

    Args:
        path: a file or folder in the directory.
        directory: the directory, which may itself be a link.

    Raises:
        InputError: the link leads somewhere else.
    """
    root, real = directory.resolve(), Path(os.path.realpath(path))
    allowed = [root]
    repository = root.parent.parent
    if root.parent.name == "snapshots" and repository.name.startswith("models--"):
        allowed += [repository / "blobs", repository.parent / "blobs"]
    if not any(real.is_relative_to(folder) for folder in allowed):
        raise InputError(
            f"{path}: it is a link that leads out of {directory}, and is not followed. Replace it by what it points to."
        )


def read_json(path: Path, *, unique_keys: bool = False) -> Any:
    """The contents of a JSON file.

    Args:
        path: the file.
        unique_keys: whether to refuse a key that occurs twice in an object.

    Raises:
        InputError: it is missing, not JSON, or too large.
    """
    with open_file(path) as stream:
        text = stream.read(MAXIMUM_JSON_BYTES + 1)
    try:
        return parse_json(text, unique_keys=unique_keys)
    except ValueError as error:
        raise InputError(f"{path}: it is not valid JSON ({error}). Repair it or get it again.") from error


def read_json_object(path: Path, *, unique_keys: bool = False) -> dict[str, Any]:
    """The contents of a JSON file that must hold an object.

    Args:
        path: the file.
        unique_keys: whether to refuse a key that occurs twice in an object.

    Raises:
        InputError: see `read_json`; or it holds something else.
    """
    contents = read_json(path, unique_keys=unique_keys)
    if not isinstance(contents, dict):
        raise InputError(f"{path}: it is not a JSON object. Repair it or get it again.")
    return contents


def parse_json(text: bytes, *, unique_keys: bool = False) -> Any:
    """The contents of a JSON text.

    Args:
        text: the text, in UTF-8.
        unique_keys: whether to refuse a key that occurs twice in an object, whose meaning depends on the reader.

    Raises:
        ValueError: it is not JSON, is nested too deeply, or has too many values.
    """
    if len(text) > MAXIMUM_JSON_BYTES:
        raise ValueError(f"it is larger than {MAXIMUM_JSON_BYTES // 10**6} MB")
    if sum(text.count(mark) for mark in (b",", b"[", b"{")) > _MAXIMUM_JSON_VALUES:
        raise ValueError(f"it has more than {_MAXIMUM_JSON_VALUES} values")
    try:
        value = json.loads(text.decode(), object_pairs_hook=_unique if unique_keys else None)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    for depth, _ in enumerate(_levels(value)):
        if depth == _MAXIMUM_JSON_DEPTH:
            raise ValueError("it is nested too deeply")
    if _HALF_CHARACTER.search(text):
        # JSON allows half of a surrogate pair, but no file name and no other text does. This raises ValueError for it.
        json.dumps(value, ensure_ascii=False).encode()
    return value


def _levels(value: Any) -> Iterator[list[Any]]:
    """The lists and objects in parsed JSON, level by level."""
    level = [value]
    while level := [one for one in level if isinstance(one, (dict, list))]:
        yield level
        level = [child for one in level for child in (one.values() if isinstance(one, dict) else one)]


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) != len(pairs):
        raise ValueError("a key occurs twice")
    return entries
