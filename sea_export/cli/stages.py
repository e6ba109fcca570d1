"""How far the stages of a command have come, told in the form that `--progress` asks for.

On a terminal there is a bar instead, see `sea_export.cli.progress`. Elsewhere there is a line now and then, and with
`--progress json` an object of JSON on a line of standard error for whoever reads it.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, TypeVar

import click
from rich.filesize import decimal
from rich.text import Text

from sea_export.cli.consoles import errors
from sea_export.files.schemas import schema_version
from sea_export.text import visible

__all__ = ["Stage", "progress_option", "shows_bars", "told", "waiting"]

_Command = TypeVar("_Command", bound=Callable[..., Any])

_FORMS = ("auto", "lines", "json", "none")
_ASKED = "sea_export.progress"
_SECONDS_BETWEEN_LINES = 30.0
_SECONDS_BETWEEN_OBJECTS = 0.5


class Stage:
    """A stage of a command, and how far it has come."""

    def __init__(self, name: str, total: int = 1, unit: str = "stages") -> None:
        """Begins it.

        Args:
            name: what is done, for people.
            total: how much there is to do.
            unit: what is counted: `items`, `bytes`, or `stages` if nothing is.
        """
        self.name, self.total, self.unit, self.done = name, total, unit, 0
        self.begin = time.monotonic()
        self.listener: Callable[[], None] | None = None
        """Called when more is done."""

    def advance(self, count: int) -> None:
        """More is done.

        Args:
            count: how much more.
        """
        self.done += count
        if self.listener is not None:
            self.listener()

    @property
    def seconds(self) -> float:
        """Since it began."""
        return time.monotonic() - self.begin

    def text(self) -> str:
        """How far it is, in one line."""
        if self.unit == "stages":
            return self.name
        shown = decimal if self.unit == "bytes" else str
        return f"{self.name}: {shown(self.done)} of {shown(self.total)}"

    def to_dict(self) -> dict[str, Any]:
        """How far it is, as plain JSON data: see the schema `progress`."""
        counted = {"stage": self.name, "done": self.done, "total": self.total, "unit": self.unit}
        return {**counted, "seconds": round(self.seconds, 3)}


@contextmanager
def told(stage: Stage) -> Iterator[None]:
    """A context in which it is told how far a stage has come, unless a bar or nothing is shown.

    Args:
        stage: the stage. One that is not counted is done when the context ends.
    """
    form = _form()
    if form == "json":
        with _told_as_objects(stage):
            yield
    elif form == "lines" or (form == "auto" and not sys.stderr.isatty() and _tells_notes()):
        with _told_regularly(stage):
            yield
    else:
        yield


def shows_bars() -> bool:
    """Whether progress is shown as a bar."""
    return _form() == "auto" and sys.stderr.isatty() and _tells_notes()


@contextmanager
def waiting(message: str) -> Iterator[None]:
    """Shows that work goes on whose duration is unknown."""
    shown = errors.status(Text(visible(message))) if shows_bars() else nullcontext()
    with told(Stage(message)), shown:
        yield


@contextmanager
def _told_as_objects(stage: Stage) -> Iterator[None]:
    last = float("-inf")

    def tell() -> None:
        nonlocal last
        last = stage.seconds
        line = {"schema": "progress", "schema_version": schema_version("progress"), **stage.to_dict()}
        errors.print(json.dumps(line), soft_wrap=True)

    def tell_sometimes() -> None:
        if stage.seconds - last >= _SECONDS_BETWEEN_OBJECTS:
            tell()

    tell()
    stage.listener = tell_sometimes
    yield
    if stage.unit == "stages":
        stage.done = stage.total
    tell()


@contextmanager
def _told_regularly(stage: Stage) -> Iterator[None]:
    """Prints every 30 seconds how far a stage has come."""
    ended = threading.Event()

    def tell() -> None:
        while not ended.wait(_SECONDS_BETWEEN_LINES):
            errors.print(f"{stage.text()} ({stage.seconds:.0f} s)", soft_wrap=True)

    teller = threading.Thread(target=tell, daemon=True)
    teller.start()
    try:
        yield
    finally:
        ended.set()
        teller.join()


def _form() -> str:
    context = click.get_current_context(silent=True)
    return "auto" if context is None else str(context.meta.get(_ASKED, "auto"))


def _tells_notes() -> bool:
    return logging.getLogger("sea_export").isEnabledFor(logging.INFO)


def _remember(context: click.Context, option: click.Parameter, form: str) -> None:
    context.meta[_ASKED] = form


progress_option: Callable[[_Command], _Command] = click.option(
    "--progress",
    type=click.Choice(_FORMS),
    default="auto",
    show_default=True,
    expose_value=False,
    callback=_remember,
    help="How progress is shown on standard error: a bar on a terminal and a line every 30 seconds elsewhere (auto), "
    "such lines everywhere, an object of JSON a line, or not at all.",
)
