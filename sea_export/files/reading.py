"""Files that somebody else wrote: which are opened, where they may lie, and how much of them is taken into memory.

A checkpoint or an edit may come from anywhere. Everything of one that this package reads by itself is opened here, so
that a named pipe does not stop it, a link does not lead it out of the directory, and a file of a few megabytes that
parses to gigabytes does not fill the memory.
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
"""Of a JSON file or a safetensors header: several times what the largest published checkpoints have."""

# An empty list takes 3 bytes of text and 80 of memory, and a key of an object more: these many take 500 MB at most.
_MAXIMUM_JSON_VALUES = 2_500_000
_MAXIMUM_JSON_DEPTH = 100
_HALF_CHARACTER = re.compile(rb"\\u[dD][89a-fA-F]")


def open_file(path: Path) -> BinaryIO:
    """Opens a file for reading, in binary.

    Raises:
        InputError: it is missing or unreadable, or no regular file.
    """
    try:
        # Without waiting, because a pipe to which nobody writes would wait for ever.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            return open(descriptor, "rb")
        os.close(descriptor)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from error
    raise InputError(f"{path} cannot be read: it is not a file.")


def check_contained(path: Path, directory: Path) -> None:
    """Refuses a link that leads out of a directory.

    The Hub's cache is made of links: of those, a snapshot's may lead into the `blobs` folder of its repository, or into
    the one that all repositories of the cache share.

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
            f"{path} is a link that leads out of {directory}, and is not followed: put what it points to in its place."
        )


def read_json(path: Path, *, unique_keys: bool = False) -> Any:
    """What the JSON file at `path` holds.

    Args:
        path: the file.
        unique_keys: whether to refuse a key that occurs twice in an object.

    Raises:
        InputError: it is missing, not JSON, or too large to be what it should be.
    """
    with open_file(path) as stream:
        text = stream.read(MAXIMUM_JSON_BYTES + 1)
    try:
        return parse_json(text, unique_keys=unique_keys)
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON: {error}.") from error


def read_json_object(path: Path, *, unique_keys: bool = False) -> dict[str, Any]:
    """The same of a file that must hold a JSON object."""
    contents = read_json(path, unique_keys=unique_keys)
    if not isinstance(contents, dict):
        raise InputError(f"{path} is not a JSON object.")
    return contents


def parse_json(text: bytes, *, unique_keys: bool = False) -> Any:
    """What a JSON text in UTF-8 says.

    Args:
        text: the text.
        unique_keys: whether to refuse a key that occurs twice in an object: what it means is up to its reader.

    Raises:
        ValueError: it is not JSON, nested too deeply, or of too many values.
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
        # Half of a character may stand for itself in JSON, but in no file name and no other text: this raises.
        json.dumps(value, ensure_ascii=False).encode()
    return value


def _levels(value: Any) -> Iterator[list[Any]]:
    """The lists and objects in a parsed JSON text, level by level."""
    level = [value]
    while level := [one for one in level if isinstance(one, (dict, list))]:
        yield level
        level = [child for one in level for child in (one.values() if isinstance(one, dict) else one)]


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) != len(pairs):
        raise ValueError("a key occurs twice")
    return entries
