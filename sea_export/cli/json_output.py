"""`--json`: the result of a command for programs, in the form of a JSON Schema that comes with the package.

A command that has a result is decorated with `json_option`, and calls `give_result` once. Everything else is done here:
the file is checked before work starts, standard output is kept free for JSON, and an error is JSON too.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import click

from sea_export.cli.terminal import console, results_on_standard_error
from sea_export.errors import InputError, SeaExportError, printable
from sea_export.files.schemas import schema_version
from sea_export.files.writing import check_destinations, json_text, write_result

__all__ = ["JsonResult", "asked_file", "give_error", "give_result", "json_option", "result_text"]

_Command = TypeVar("_Command", bound=Callable[..., Any])

_STANDARD_OUTPUT = Path("-")
_ASKED, _GIVEN = "sea_export.json", "sea_export.json_given"


class JsonResult(Protocol):
    """A result of the library that a command can give as JSON."""

    def to_dict(self) -> Mapping[str, Any]:
        """All of it as plain JSON data."""


@dataclass(frozen=True)
class _Asked:
    """Where the result is to be written, and the command that was asked for it."""

    file: Path
    command: click.Context

    def check(self) -> None:
        """Raises InputError if the file cannot be written, or belongs to what the command reads or writes."""
        if self.file == _STANDARD_OUTPUT:
            return
        own = self.file.resolve()
        for place in _places(self.command):
            if own == place or (place.exists() and own.is_relative_to(place)):
                raise InputError(f"{self.file}: the command reads it or writes it otherwise. Choose another file.")
        check_destinations([self.file])


def json_option(command: _Command) -> _Command:
    """Adds `--json` to a command, which has to call `give_result` where its result is complete."""

    @functools.wraps(command)
    def run(*arguments: Any, **values: Any) -> Any:
        asked = _asked(click.get_current_context())
        if asked is not None:
            asked.check()
        alone = asked is not None and asked.file == _STANDARD_OUTPUT
        with results_on_standard_error() if alone else nullcontext():
            return command(*arguments, **values)

    return _json_option(run)  # type: ignore[return-value]


def give_result(schema: str, result: JsonResult) -> None:
    """Writes the result of the present command as JSON, if that was asked for.

    Args:
        schema: the name of its schema, a file of `sea_export/data/schemas/`.
        result: what the command's function of the library gave.
    """
    context = click.get_current_context()
    asked = _asked(context)
    if asked is not None:
        _give(context, asked, result_text(schema, result))
        if asked.file != _STANDARD_OUTPUT:
            console.print(f"Wrote the result as JSON to {asked.file}.", soft_wrap=True)


def result_text(schema: str, result: JsonResult) -> str:
    """A result as JSON, with the name and the version of its schema.

    Args:
        schema: see `give_result`.
        result: see `give_result`.
    """
    return _text(schema, result.to_dict())


def give_error(context: click.Context, message: str, exit_status: int) -> None:
    """Writes an error as JSON, if JSON was asked for, and no result was given before.

    Args:
        context: that of the program.
        message: what is wrong, and what to do.
        exit_status: with which the program ends.
    """
    asked = _asked(context)
    if asked is None or context.meta.get(_GIVEN):
        return
    try:
        asked.check()
        error = {"message": printable(message), "exit_status": exit_status}
        _give(context, asked, _text("error", {"error": error}))
    except (OSError, SeaExportError):
        return  # the error itself is told on standard error, and is the more important one


def asked_file() -> Path | None:
    """The file that the result of the present command is written to; None for none, and for standard output."""
    asked = _asked(click.get_current_context())
    return None if asked is None or asked.file == _STANDARD_OUTPUT else asked.file


def _text(schema: str, content: Mapping[str, Any]) -> str:
    return json_text({"schema": schema, "schema_version": schema_version(schema), **content})


def _give(context: click.Context, asked: _Asked, text: str) -> None:
    context.meta[_GIVEN] = True
    if asked.file == _STANDARD_OUTPUT:
        click.echo(text, nl=False)
    else:
        write_result(asked.file, text)


def _asked(context: click.Context) -> _Asked | None:
    found: _Asked | None = context.meta.get(_ASKED)
    return found


def _remember(context: click.Context, option: click.Parameter, file: Path | None) -> None:
    if file is not None:
        context.meta[_ASKED] = _Asked(file, context)


def _places(command: click.Context) -> Iterator[Path]:
    """The files and directories that the other options and arguments of a command may name, also as NAME=FILE."""
    for value in command.params.values():
        for one in value if isinstance(value, tuple) else (value,):
            for text in {str(one), str(one).partition("=")[2]} if isinstance(one, (str, Path)) else ():
                if text and (isinstance(one, Path) or os.path.exists(text)):
                    yield Path(text).expanduser().resolve()


_json_option: Callable[[_Command], _Command] = click.option(
    "--json",
    type=click.Path(path_type=Path, dir_okay=False, allow_dash=True),
    is_eager=True,
    expose_value=False,
    callback=_remember,
    metavar="FILE|-",
    help="Write the result as JSON to this file, or with - to standard output, which then holds nothing else.",
)
