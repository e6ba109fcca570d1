"""The files that a search writes, checked before anything is computed and before torch is imported."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from pathlib import Path

from sea_export.errors import InputError, first_line
from sea_export.evaluation.drawing import check_picture
from sea_export.export.output import check_beside
from sea_export.files.writing import check_appendable, check_destinations
from sea_export.tuning.tuning_options import TuneOptions

__all__ = ["check_files", "check_storage", "complete_lines", "unusable"]

_BEGINNING = b'{"op_code":'
"""Of every line of a journal."""


def check_files(options: TuneOptions, output: Path, read: Iterable[str | None]) -> None:
    """Raises InputError for files of a search that could not be written when it has ended.

    Args:
        options: those that name the files.
        output: the directory into which the chosen edit is baked.
        read: the model and the tables of the search, which are not replaced; None for those that are not given.
    """
    files = [options.plot, options.record_file(output), options.storage]
    if options.plot is not None:
        check_picture(options.plot)
    if options.storage is not None:
        check_appendable(options.storage)
    known = options.storage is not None and options.storage.exists()
    if options.pick.isdigit() and not known and int(options.pick) >= options.trials:
        raise InputError(
            f"--pick: {options.pick} is no trial of {options.trials}, counted from 0. Give a lower number."
        )
    check_storage(options.storage)
    check_destinations(files, read=read)
    check_beside(output, *files)


def check_storage(storage: Path | None) -> None:
    """Refuses what `sea_export.tuning.study.open_study` would refuse, before anything is computed.

    Args:
        storage: a file, which may be missing; None to keep the study in memory only.

    Raises:
        InputError: optuna is missing, or the file is not a journal of studies.
    """
    if importlib.util.find_spec("optuna") is None:
        raise InputError("optuna: a search needs it, and it is not installed. Run pip install 'sea-export[tune]'.")
    if storage is not None and storage.exists():
        try:
            complete_lines(storage)
        except (OSError, ValueError) as error:
            raise unusable(storage, error) from error


def complete_lines(journal: Path) -> int:
    """The number of bytes in the complete lines of a journal.

    Args:
        journal: the file.

    Raises:
        ValueError: it is no journal of studies.
    """
    content = journal.read_bytes()
    complete = content[: content.rfind(b"\n") + 1]
    rest = content[len(complete) :]
    whole = all(line.startswith(_BEGINNING) for line in complete.splitlines())
    if not whole or rest[: len(_BEGINNING)] != _BEGINNING[: len(rest)]:
        raise ValueError("a line of it is not that of a study")
    return len(complete)


def unusable(storage: Path | None, error: Exception) -> InputError:
    """What is told of a file that cannot keep a study.

    Args:
        storage: the file.
        error: why it cannot.
    """
    return InputError(f"{storage}: it cannot keep a study ({first_line(error)}). Give another file.")
