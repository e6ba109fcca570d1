"""The output directory: checked before work starts, written under another name, and renamed when it is complete."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from sea_export.errors import InputError, SeaExportError, reason
from sea_export.files.writing import flush
from sea_export.locks import Locked, is_locked, locked_directory, remove_leftovers, scratch_directory

__all__ = ["EDIT_DIRECTORY", "check_output", "check_room", "staged_output"]

EDIT_DIRECTORY = "sea_edit"
"""The folder of an output that holds the edit."""

_OWN_FILES = ("sea_export.json", "sea_edit.json")
_REMOVED = ".{}.removed-"


def check_output(output: Path, *, overwrite: bool) -> None:
    """Refuses an output directory that could not be written at the end.

    Args:
        output: the directory to be written.
        overwrite: whether an existing one may be replaced.

    Raises:
        InputError: `output` exists and may not be replaced, cannot be created, or is being written by another run.
    """
    output = output.resolve()
    parent = output.parent
    if output.exists():
        if not output.is_dir():
            raise InputError(f"{output}: it exists and is not a directory. Choose another output.")
        if not overwrite:
            raise InputError(f"{output}: it exists. Choose another output, or replace it with --overwrite.")
        if any(output.iterdir()) and not any((output / file).is_file() for file in _OWN_FILES):
            raise InputError(
                f"{output}: it was not written by sea-export, so it is not overwritten. Remove it yourself."
            )
    if not parent.is_dir():
        raise InputError(f"{parent}: it is not a directory, and {output.name} is to be written there. Create it first.")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise InputError(
            f"{parent}: it is not writable, and {output.name} is to be written there. Choose another directory."
        )
    if is_locked(_beside(output, "partial")):
        raise InputError(_being_written(output))


def check_room(output: Path, base: Iterable[Path], *, needed_bytes: int) -> None:
    """Refuses an output that lies inside its base or around it, or that does not fit on its disk.

    Args:
        output: the directory to be written. Its parent exists.
        base: the directories and files of the base, which must not change.
        needed_bytes: the size of the output in bytes.

    Raises:
        InputError: `output` is the base's directory, lies in it, or holds the base; or there is too little room.
    """
    output = output.resolve()
    for path in (one.resolve() for one in base):
        if path.is_relative_to(output) or (path.is_dir() and output.is_relative_to(path)):
            raise InputError(f"{output}: it is the base {path}, lies inside it, or holds it. Choose another output.")
    free = shutil.disk_usage(output.parent).free
    if free < needed_bytes:
        raise InputError(
            f"{output}: it needs {_gigabytes(needed_bytes)}, and its disk has {_gigabytes(free)} free. Make room, or "
            "choose another disk."
        )


@contextmanager
def staged_output(output: Path, *, overwrite: bool) -> Iterator[Path]:
    """A temporary directory beside `output`, which is renamed to `output` when the context ends without an error.

    It is removed on any exception, also on an interrupt. The directory of a run that was killed is removed by the next
    run. The directory of a run that is still active is not touched.

    Args:
        output: the directory to be written. Its parent exists.
        overwrite: whether a directory that exists at the end is replaced. It stays until then.

    Yields:
        the directory to write into, empty.

    Raises:
        InputError: another run is writing `output`, or it exists at the end and must not be replaced.
        SeaExportError: it could not be written.
    """
    output = output.resolve()
    partial = _beside(output, "partial")
    try:
        with locked_directory(partial):
            _settle(output)
            remove_leftovers(_REMOVED.format(output.name), output.parent)
            yield partial
            _flush(partial)
            _move_into_place(partial, output, overwrite=overwrite)
    except Locked as error:
        raise InputError(_being_written(output)) from error
    except (OSError, SafetensorError) as error:
        raise SeaExportError(f"{output}: it could not be written: {reason(error)}.") from error


def _beside(output: Path, what: str) -> Path:
    return output.with_name(f".{output.name}.{what}")


def _being_written(output: Path) -> str:
    return (
        f"{output}: another run is writing it. Wait for it to end, or choose another output (or remove "
        f"{_beside(output, 'partial')}, if it is still there when no run is active)."
    )


def _settle(output: Path) -> None:
    """Completes or undoes what `_move_into_place` began, in this run or in one that was killed."""
    replaced = _beside(output, "replaced")
    if not replaced.is_dir():
        return
    if output.exists():
        _discard(replaced, output)
    else:
        replaced.rename(output)


def _move_into_place(partial: Path, output: Path, *, overwrite: bool) -> None:
    if output.exists() and not overwrite:
        raise InputError(f"{output}: it has been created meanwhile. Choose another output.")
    try:
        if output.exists():
            output.rename(_beside(output, "replaced"))
        partial.rename(output)
        flush(output.parent)
    finally:
        _settle(output)


def _discard(replaced: Path, output: Path) -> None:
    """Removes an output that a new one has replaced. It is renamed first, so that it is never half removed."""
    with scratch_directory(_REMOVED.format(output.name), output.parent) as removed:
        replaced.rename(removed / output.name)


def _flush(directory: Path) -> None:
    """Flushes everything in `directory` to the disk, so that a power failure leaves no half-written output."""
    for path in directory.rglob("*"):
        flush(path)
    flush(directory)


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.2f} GB"
