"""The output directory: checked before work starts, written in a place beside it, and moved when it is complete.

The place is the directory `.OUTPUT.partial`, which belongs to one run at a time. Nothing is in it but three folders:
`unfinished`, which becomes the output; `replaced`, the older output while it is exchanged; and `removed`, the older
output after that. So what a killed run has left is told apart from everything else, which is not touched.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from sea_export.errors import InputError, SeaExportError, reason
from sea_export.files.writing import flush
from sea_export.locks import Locked, locked_directory

__all__ = ["EDIT_DIRECTORY", "check_beside", "check_output", "check_room", "staged_output"]

EDIT_DIRECTORY = "sea_edit"
"""The folder of an output that holds the edit."""

_OWN_FILES = ("sea_export.json", "sea_edit.json")
_FOLDERS = {_UNFINISHED := "unfinished", _REPLACED := "replaced", _REMOVED := "removed"}


def check_output(output: Path, *, overwrite: bool) -> None:
    """Refuses an output directory that could not be written at the end.

    An older output that a killed run has moved away comes back.

    Args:
        output: the directory to be written.
        overwrite: whether an existing one may be replaced.

    Raises:
        InputError: `output` exists and may not be replaced, cannot be created, or is being written by another run.
    """
    output = output.resolve()
    parent = output.parent
    _check_existing(output, overwrite=overwrite)
    if not parent.is_dir():
        raise InputError(f"{parent}: it is not a directory, and {output.name} is to be written there. Create it first.")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise InputError(
            f"{parent}: it is not writable, and {output.name} is to be written there. Choose another directory."
        )
    if _is_left(output):
        with _place_of(output):
            _check_existing(output, overwrite=overwrite)


def _check_existing(output: Path, *, overwrite: bool) -> None:
    try:
        if not output.exists():
            return
    except OSError as error:  # its name is too long
        raise InputError(f"{output}: it cannot be written ({reason(error)}). Choose another output.") from error
    if not output.is_dir():
        raise InputError(f"{output}: it exists and is not a directory. Choose another output.")
    if not overwrite:
        raise InputError(f"{output}: it exists. Choose another output, or replace it with --overwrite.")
    if any(output.iterdir()) and not any((output / file).is_file() for file in _OWN_FILES):
        raise InputError(f"{output}: it was not written by sea-export, so it is not overwritten. Remove it yourself.")


def check_beside(output: Path, *others: Path | None) -> None:
    """Refuses what would be written into an output directory by another name, and so would be lost or in the way.

    Args:
        output: the directory to be written.
        others: other files and directories that the same command writes; None for those that are not asked for.

    Raises:
        InputError: one of them is the output or lies inside it.
    """
    for other in filter(None, others):
        if other.resolve().is_relative_to(output.resolve()):
            raise InputError(f"{other}: it is the output {output}, or lies inside it. Choose another place for it.")


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
    """A directory beside `output`, which becomes `output` when the context ends without an error.

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
    try:
        with _place_of(output) as place:
            unfinished = place / _UNFINISHED
            unfinished.mkdir()
            yield unfinished
            _flush(unfinished)
            _move_into_place(unfinished, output, overwrite=overwrite)
    except (OSError, SafetensorError) as error:
        raise SeaExportError(f"{output}: it could not be written: {reason(error)}.") from error


def _beside(output: Path) -> Path:
    return output.with_name(f".{output.name}.partial")


@contextmanager
def _place_of(output: Path) -> Iterator[Path]:
    """The directory in which an output is written, empty. What a killed run has begun is completed or undone first.

    Raises:
        InputError: another run has it, or something else is there.
    """
    place = _beside(output)
    _is_left(output)
    try:
        with locked_directory(place):
            _settle(place, output)
            for leftover in place.iterdir():
                shutil.rmtree(leftover)
            yield place
    except Locked as error:
        raise InputError(
            f"{output}: another run is writing it. Wait for it to end, or choose another output (or, when no run is "
            f"active, look into {place} and remove it)."
        ) from error


def _is_left(output: Path) -> bool:
    """Whether the directory in which an output is written is there. Raises InputError for anything else there."""
    place = _beside(output)
    try:
        own = stat.S_ISDIR(os.lstat(place).st_mode) and {one.name for one in place.iterdir()} <= _FOLDERS
    except FileNotFoundError:
        return False
    except OSError as error:
        raise InputError(f"{output}: it cannot be written ({reason(error)}). Choose another output.") from error
    if not own:
        raise InputError(
            f"{place}: {output.name} is to be written there first, and sea-export did not make what is there. Move it "
            "away, or choose another output."
        )
    return True


def _settle(place: Path, output: Path) -> None:
    """Completes or undoes what `_move_into_place` began, in this run or in one that was killed."""
    replaced = place / _REPLACED
    if not replaced.is_dir():
        return
    if output.exists():
        # It is renamed before it is removed, so that what is half removed never comes back as an output.
        replaced.rename(place / _REMOVED)
    else:
        replaced.rename(output)


def _move_into_place(unfinished: Path, output: Path, *, overwrite: bool) -> None:
    if output.exists() and not overwrite:
        raise InputError(f"{output}: it has been created meanwhile. Choose another output.")
    place = unfinished.parent
    try:
        if output.exists():
            output.rename(place / _REPLACED)
        unfinished.rename(output)
        flush(output.parent)
    finally:
        _settle(place, output)


def _flush(directory: Path) -> None:
    """Flushes everything in `directory` to the disk, so that a power failure leaves no half-written output."""
    for path in directory.rglob("*"):
        flush(path)
    flush(directory)


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.2f} GB"
