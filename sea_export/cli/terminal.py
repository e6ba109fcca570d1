"""Output of commands: results on standard output, everything else on standard error.

Text of models and files is shown as text: it is neither markup nor a command to the terminal.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.table import Table

from sea_export.cli.consoles import console, errors
from sea_export.cli.stages import waiting
from sea_export.errors import printable

__all__ = [
    "console",
    "errors",
    "plain_table",
    "print_error",
    "results_on_standard_error",
    "set_verbosity",
    "silenced",
    "waiting",
]

_STYLES = {logging.WARNING: "yellow", logging.ERROR: "red"}


class _ConsoleHandler(logging.Handler):
    """Shows the records of the loggers of the package beside the progress bars."""

    def __init__(self, *, detailed: bool) -> None:
        super().__init__()
        self._detailed = detailed
        self.setFormatter(logging.Formatter("%(asctime)s %(name)s: %(message)s" if detailed else None))

    def emit(self, record: logging.LogRecord) -> None:
        text = self.format(record)
        if not self._detailed:
            text = f"{record.levelname.capitalize() if record.levelno > logging.INFO else 'Note'}: {text}"
        errors.print(text, style=_STYLES.get(record.levelno), soft_wrap=True)


@contextmanager
def set_verbosity(*, verbose: bool, quiet: bool) -> Iterator[None]:
    """Shows the log records of the package while a command runs.

    Args:
        verbose: whether details are shown, each with its time and module.
        quiet: whether only errors are shown.
    """
    logger = logging.getLogger("sea_export")
    level = logger.level
    handler = _ConsoleHandler(detailed=verbose)
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG if verbose else logging.ERROR if quiet else logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


@contextmanager
def silenced() -> Iterator[None]:
    """A context in which nothing is printed."""
    console.quiet = errors.quiet = True
    try:
        yield
    finally:
        console.quiet = errors.quiet = False


@contextmanager
def results_on_standard_error() -> Iterator[None]:
    """A context in which results go to standard error too, so that standard output is free for something else."""
    console.stderr = True
    try:
        yield
    finally:
        console.stderr = False


def plain_table(*columns: str, title: str | None = None, show_lines: bool = False) -> Table:
    """A table of which nothing is cut off: where a column is too narrow, its texts go on in the next line.

    Args:
        columns: their names.
        title: what stands above it.
        show_lines: whether there are lines between the rows.
    """
    table = Table(title=title, title_justify="left", show_lines=show_lines)
    for name in columns:
        table.add_column(name, overflow="fold")
    return table


def print_error(message: str) -> None:
    """Prints why a command ends, in one line."""
    print(f"Error: {printable(message)}", file=sys.stderr)
