"""Files that are completely on the disk, or not at all, and that take the place of nothing but an older result.

A command writes into its output directory, and to the files that its options name. Such a file may be anything: a
device, an open pipe, a link. Only a regular file is replaced, by one that was written beside it.
"""

from __future__ import annotations

import json
import math
import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sea_export.errors import InputError, reason
from sea_export.locks import scratch_directory

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "check_appendable",
    "check_destinations",
    "complete_file",
    "flush",
    "is_stream",
    "json_text",
    "readable_as_new",
    "write_json",
    "write_result",
    "write_tensors",
    "write_text",
]

_UNFINISHED = ".sea-export-unfinished-"
# Characters that JSON may contain as they are, and that would control a terminal or that UTF-8 does not have.
_UNSAFE_IN_JSON = re.compile("[\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def check_destinations(files: Iterable[Path | None], *, read: Iterable[str | Path | None] = ()) -> None:
    """Refuses files that could not be written when the work is done, or whose place is taken.

    Args:
        files: those that will be written; None for those that are not asked for.
        read: what the same command reads: files, directories, names of other things, or None.

    Raises:
        InputError: a file cannot be written, two results have the same file, or it would replace what is read.
    """
    sources = [Path(source).expanduser().resolve() for source in read if source]
    taken: set[Path] = set()
    for file in files:
        if file is None or _check_writable(file):
            continue
        place = file.resolve()
        if place in taken:
            raise InputError(f"{file}: two results would be written there. Choose another file for one of them.")
        if place.exists() and any(place.is_relative_to(source) for source in sources):
            raise InputError(f"{file}: it belongs to what is read, and is not replaced. Choose another file.")
        taken.add(place)


def check_appendable(file: Path) -> None:
    """Refuses a file to which lines cannot be appended, or from which they cannot be read again.

    Args:
        file: it may be missing.

    Raises:
        InputError: it cannot be written, or it is a device or a pipe.
    """
    if _check_writable(file):
        raise InputError(f"{file}: it is a device or a pipe, and what it keeps is read again. Choose a file.")


def is_stream(file: Path) -> bool:
    """Whether a file is written through, and not replaced: a device such as /dev/null, or an open pipe.

    A pipe with a name is none, because nobody may ever read it.

    Args:
        file: it may be missing.

    Raises:
        InputError: it is neither such a stream nor a regular file, or it cannot be looked at.
    """
    try:
        mode = file.stat().st_mode
    except FileNotFoundError:
        if not file.is_symlink():
            return False
        raise InputError(f"{file}: it is a link that leads nowhere. Remove it, or choose another file.") from None
    except OSError as error:
        raise InputError(f"{file}: it cannot be written ({reason(error)}). Choose another file.") from error
    if stat.S_ISCHR(mode) or (stat.S_ISFIFO(mode) and not os.path.lexists(os.path.realpath(file))):
        return True
    if file.is_symlink():
        raise InputError(f"{file}: it is a link, and what it leads to is not replaced. Give the file itself.")
    if not stat.S_ISREG(mode):
        raise InputError(f"{file}: it is not a regular file, and is not replaced. Choose another file.")
    return False


def write_result(file: Path, content: str | bytes) -> None:
    """Writes a file that an option names.

    Args:
        file: where. A regular file is replaced by one that is complete, and keeps its permissions.
        content: text, which is written in UTF-8, or bytes.

    Raises:
        InputError: see `is_stream`.
        OSError: it cannot be written.
    """
    data = content.encode() if isinstance(content, str) else content
    if not is_stream(file):
        _replace(file, data)
        return
    with open(file, "wb", buffering=0) as stream:
        rest = memoryview(data)
        while rest:
            rest = rest[stream.write(rest) :]


def write_text(path: Path, text: str) -> None:
    """Writes a file of an output. It appears, or replaces an older one, only when it is complete.

    Args:
        path: the file.
        text: its contents, written in UTF-8.
    """
    _replace(path, text.encode())


def flush(path: Path) -> None:
    """Waits until a file, or the entries of a directory, are on the disk, so that they outlast a power failure."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, data: object) -> None:
    """Writes data as indented JSON into a file of an output.

    Args:
        path: the file.
        data: plain JSON data.

    Raises:
        ValueError: a number is NaN or infinite, which JSON does not have.
    """
    write_text(path, json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Writes tensors as a safetensors file.

    Args:
        path: the file, which does not exist.
        tensors: contiguous tensors by name, on the CPU.
    """
    from safetensors.torch import save_file

    save_file(dict(tensors), path, metadata={"format": "pt"})
    readable_as_new(path)


def readable_as_new(path: Path) -> None:
    """Gives a file the permissions of a new one, as the user's mask has them.

    Libraries write weights to temporary files, which only their user may read, and rename them.

    Args:
        path: the file.
    """
    trial = path.with_name(f".{path.name}.permissions")
    with open(trial, "xb") as stream:
        mode = os.fstat(stream.fileno()).st_mode
    trial.unlink()
    path.chmod(mode & 0o777)


def json_text(data: object) -> str:
    """Results as indented JSON that every program reads, and every terminal shows.

    Args:
        data: plain JSON data. Numbers that JSON does not have, NaN and infinities, become null.
    """
    text = json.dumps(_finite(data), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    return _UNSAFE_IN_JSON.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def _finite(data: Any) -> Any:
    if isinstance(data, dict):
        return {key: _finite(value) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [_finite(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data


def _check_writable(file: Path) -> bool:
    """`is_stream`, after a check that it can be written."""
    stream, directory = is_stream(file), file.resolve().parent
    if not stream and not directory.is_dir():
        raise InputError(
            f"{file}: it cannot be written, because its directory does not exist. Create the directory first."
        )
    writable = stream or os.access(directory, os.W_OK | os.X_OK)
    if not writable or (file.exists() and not os.access(file, os.W_OK)):
        raise InputError(f"{file}: it cannot be written (Permission denied). Choose another file.")
    return stream


@contextmanager
def complete_file(path: Path) -> Iterator[Path]:
    """The path of a file that is to be written, and that becomes `path` when the context ends without an error.

    Until then an older file stays, whose permissions it gets. What a killed run has left beside it goes.

    Args:
        path: the file.

    Raises:
        OSError: it cannot be written.
    """
    with scratch_directory(_UNFINISHED, path.parent) as scratch:
        unfinished = scratch / path.name
        yield unfinished
        if path.exists():
            unfinished.chmod(stat.S_IMODE(path.stat().st_mode))
        flush(unfinished)
        unfinished.replace(path)


def _replace(path: Path, data: bytes) -> None:
    with complete_file(path) as unfinished:
        unfinished.write_bytes(data)
