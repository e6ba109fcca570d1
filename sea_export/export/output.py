"""The output directory: checked before work starts, written beside its place, moved there when it is complete."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sea_export.digest import file_digest
from sea_export.errors import InputError

__all__ = ["check_output", "file_digests", "staged_output", "write_json"]

_OWN_FILES = ("sea_export.json", "sea_edit.json")


def check_output(output: Path, *, overwrite: bool, needed_bytes: int, base: Path | None = None) -> None:
    """Refuse an output directory that could not be written in the end.

    Args:
        output: the directory to be written.
        overwrite: whether an existing one may be replaced.
        needed_bytes: how large it will be.
        base: the directory of the base model, which must not be touched.

    Raises:
        InputError: `output` exists and may not be replaced, cannot be created, would mix with the base, or does
            not fit on its disk.
    """
    output = output.resolve()
    parent = output.parent
    if base is not None:
        base = base.resolve()
        if output.is_relative_to(base) or base.is_relative_to(output):
            raise InputError(f"{output} and the base model {base} lie inside each other; choose another output.")
    if output.exists():
        if not output.is_dir():
            raise InputError(f"{output} exists and is not a directory; choose another output.")
        if not overwrite:
            raise InputError(f"{output} exists; choose another output, or replace it with --overwrite.")
        if any(output.iterdir()) and not any((output / file).is_file() for file in _OWN_FILES):
            raise InputError(f"{output} was not written by sea-export, so it is not overwritten; remove it yourself.")
    if not parent.is_dir():
        raise InputError(f"{parent}, where {output.name} is to be written, is not a directory; create it first.")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise InputError(f"{parent}, where {output.name} is to be written, is not writable.")
    free = shutil.disk_usage(parent).free
    if free < needed_bytes:
        raise InputError(
            f"{output} needs {_gigabytes(needed_bytes)}, and its disk has {_gigabytes(free)} free; "
            "make room or choose another disk."
        )


@contextmanager
def staged_output(output: Path, *, overwrite: bool) -> Iterator[Path]:
    """A temporary directory beside `output` that takes its place when the context ends well.

    It is removed on any exception, an interrupt included. What runs that were killed have left behind is removed
    at the next start; a run that is alive holds a lock on its directory, and is left alone.

    Args:
        output: the directory to be written; its parent exists.
        overwrite: whether a directory that is there at the end is replaced. It stays until then.

    Yields:
        the directory to write into, empty.

    Raises:
        InputError: `output` exists at the end, and is not to be replaced.
    """
    output = output.resolve()
    _remove_leftovers(output)
    partial = output.with_name(f".{output.name}.partial-{secrets.token_hex(4)}")
    partial.mkdir()
    try:
        # On a file system without locks nobody can tell whether this run is alive, and so nobody removes it.
        with _opened(partial) as descriptor:
            with contextlib.suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield partial
            _flush(partial)
            _move_into_place(partial, output, overwrite=overwrite)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def write_json(path: Path, data: object) -> None:
    """Write `data` as indented JSON. Raises ValueError for numbers that JSON does not have (NaN, infinities)."""
    path.write_text(json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def file_digests(directory: Path) -> dict[str, str]:
    """SHA-256 of every file below `directory`, in hexadecimal, by sorted POSIX path relative to it."""
    files = sorted(path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file())
    return {file: file_digest(directory / file) for file in files}


def _remove_leftovers(output: Path) -> None:
    """Remove the partial outputs of runs that are dead: those whose lock nobody holds."""
    for path in output.parent.iterdir():
        if not path.name.startswith(f".{output.name}.partial-"):
            continue
        try:
            with _opened(path) as descriptor:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path)
        except OSError:
            continue  # alive, gone by now, or not ours to remove


def _move_into_place(partial: Path, output: Path, *, overwrite: bool) -> None:
    replaced = None
    if output.exists():
        if not overwrite:
            raise InputError(f"{output} has come into being meanwhile; choose another output.")
        replaced = output.with_name(f".{output.name}.replaced-{secrets.token_hex(4)}")
        output.rename(replaced)
    try:
        partial.rename(output)
    except BaseException:
        if replaced is not None:
            replaced.rename(output)
        raise
    _flush_one(output.parent)
    if replaced is not None:
        shutil.rmtree(replaced)


def _flush(directory: Path) -> None:
    """Have everything below `directory` on the disk, so that not even a power failure leaves a half-written output."""
    for path in directory.rglob("*"):
        _flush_one(path)
    _flush_one(directory)


def _flush_one(path: Path) -> None:
    with _opened(path) as descriptor:
        os.fsync(descriptor)


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    """A descriptor of a file or, unlike with open(), of a directory."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.2f} GB"
