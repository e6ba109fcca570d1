"""Output of commands: results on standard output, everything else on standard error.

Progress is shown only if standard error is a terminal. Text of models and files is shown as text: it is neither markup
nor a command to the terminal.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

from rich.console import Console, JustifyMethod, OverflowMethod
from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
from rich.style import Style
from rich.table import Table
from rich.text import Text

from sea_export.errors import printable
from sea_export.text import visible

__all__ = [
    "console",
    "errors",
    "plain_table",
    "print_error",
    "progress_bar",
    "set_verbosity",
    "silenced",
    "told_regularly",
    "waiting",
]

_SECONDS_BETWEEN_LINES = 30.0
_STYLES = {logging.WARNING: "yellow", logging.ERROR: "red"}


class _PlainConsole(Console):
    """A console that prints every string as plain text. It respects NO_COLOR, as every console of rich does."""

    def __init__(self, *, stderr: bool, width: int | None) -> None:
        super().__init__(stderr=stderr, width=width, highlight=False, markup=False, emoji=False)

    def render_str(
        self,
        text: str,
        *,
        style: str | Style = "",
        justify: JustifyMethod | None = None,
        overflow: OverflowMethod | None = None,
        emoji: bool | None = None,
        markup: bool | None = None,
        highlight: bool | None = None,
        highlighter: Callable[[str | Text], Text] | None = None,
    ) -> Text:
        return super().render_str(visible(text), style=style, justify=justify, overflow=overflow)


# A file or a pipe has no width, and nothing in it may be cut off.
console = _PlainConsole(stderr=False, width=None if sys.stdout is not None and sys.stdout.isatty() else 200)
errors = _PlainConsole(stderr=True, width=None)


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


def progress_bar(*columns: ProgressColumn) -> Progress:
    """A progress bar with the given columns. It is visible only on a terminal."""
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        *columns,
        TimeRemainingColumn(),
        console=errors,
        transient=True,
        disable=not _shows_progress(),
    )


@contextmanager
def waiting(message: str) -> Iterator[None]:
    """Shows that work goes on whose duration is unknown."""
    shown = errors.status(Text(visible(message))) if _shows_progress() else nullcontext()
    with told_regularly(lambda: message), shown:
        yield


@contextmanager
def told_regularly(line: Callable[[], str]) -> Iterator[None]:
    """Where there is no terminal for a progress bar, prints every 30 seconds how far the work in the context has come.

    Args:
        line: gives how far that is, in one line.
    """
    if sys.stderr.isatty() or not _tells_notes():
        yield
        return
    ended, begin = threading.Event(), time.monotonic()

    def tell() -> None:
        while not ended.wait(_SECONDS_BETWEEN_LINES):
            errors.print(f"{line()} ({time.monotonic() - begin:.0f} s)", soft_wrap=True)

    teller = threading.Thread(target=tell, daemon=True)
    teller.start()
    try:
        yield
    finally:
        ended.set()
        teller.join()


def _shows_progress() -> bool:
    return sys.stderr.isatty() and _tells_notes()


def _tells_notes() -> bool:
    return logging.getLogger("sea_export").isEnabledFor(logging.INFO)
