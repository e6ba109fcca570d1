"""What reaches the terminal: results on standard output, everything else on standard error.

Progress is shown where standard error is a terminal, and nowhere else. What a model or a file says is shown as text: it
is neither markup nor a command to the terminal.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console, JustifyMethod, OverflowMethod
from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
from rich.style import Style
from rich.text import Text

from sea_export.text import visible

__all__ = ["console", "errors", "print_error", "progress_bar", "set_verbosity", "silenced", "waiting"]

_STYLES = {logging.WARNING: "yellow", logging.ERROR: "red"}


class _PlainConsole(Console):
    """A console to which every string is plain text. It honours NO_COLOR, as rich's own does."""

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


# Without a terminal there is no width to fit: nothing may be cut off in a file or a pipe.
console = _PlainConsole(stderr=False, width=None if sys.stdout.isatty() else 200)
errors = _PlainConsole(stderr=True, width=None)


class _ConsoleHandler(logging.Handler):
    """Shows the records of the package's loggers beside the progress bars."""

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
    """Shows what the package's loggers say, for as long as a command runs.

    Args:
        verbose: whether to show details, each with the time and the module that it comes from.
        quiet: whether to show errors alone.
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
    """Nothing is printed, for a process that has nothing to say."""
    console.quiet = errors.quiet = True
    try:
        yield
    finally:
        console.quiet = errors.quiet = False


def print_error(message: str) -> None:
    """Says why a command ends, in one line of its own."""
    print(f"Error: {visible(message)}", file=sys.stderr)


def progress_bar(*columns: ProgressColumn) -> Progress:
    """A progress bar with the given columns, which is seen where there is a terminal to see it on."""
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
    """Shows that something goes on of which nobody knows how long it takes."""
    if not _shows_progress():
        yield
        return
    with errors.status(Text(visible(message))):
        yield


def _shows_progress() -> bool:
    return sys.stderr.isatty() and logging.getLogger("sea_export").isEnabledFor(logging.INFO)
