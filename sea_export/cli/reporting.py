"""`--debug`, `--verbose` and `--quiet`, which the program and every command have, and the messages of failures."""

from __future__ import annotations

import functools
import sys
import traceback
from collections.abc import Callable
from typing import Any, TypeVar

import click

from sea_export.cli.config_option import config_options, print_config_if_asked
from sea_export.cli.json_output import give_error
from sea_export.cli.stages import progress_option
from sea_export.cli.stopping import Stopped
from sea_export.cli.terminal import print_error, set_verbosity
from sea_export.errors import SeaExportError, first_line, reason
from sea_export.text import visible
from sea_export.versions import devices, library_versions, system

__all__ = ["reported", "reporting_options", "tell_failure"]

_Command = TypeVar("_Command", bound=Callable[..., Any])

_HELP = {
    "quiet": "Show results and errors only.",
    "verbose": "Show what is done and when.",
    "debug": "Show the traceback of an error, and what the program ran on.",
}
_NO_MEMORY = (
    "memory: there is not enough of it. Lower --batch-tokens, choose --layerwise, or free some; sea-export doctor "
    "MODEL says how much a job needs."
)


def reporting_options(command: _Command) -> _Command:
    """Adds the three options. Their values hold for one call of the program."""
    for name, text in _HELP.items():
        command = click.option(f"--{name}", is_flag=True, expose_value=False, callback=_remember, help=text)(command)
    return command


def reported(command: _Command) -> _Command:
    """Adds the options that every command has: these three, with which it prints as much as they say, `--progress`, and
    `--config` with `--print-config`."""

    @functools.wraps(command)
    def run(*arguments: Any, **values: Any) -> Any:
        context = click.get_current_context()
        print_config_if_asked(context)
        context.meta[_key("command")] = {"name": context.info_name, **context.params}
        with set_verbosity(verbose=_asked(context, "verbose"), quiet=_asked(context, "quiet")):
            return command(*arguments, **values)

    return reporting_options(config_options(progress_option(run)))  # type: ignore[return-value]


def tell_failure(context: click.Context, error: Exception | Stopped) -> int:
    """Prints why a command has failed, in one or two sentences. With `--debug` the traceback comes first.

    Args:
        context: the context of the program.
        error: the error that ended the command.

    Returns:
        the exit status.
    """
    if _asked(context, "debug") and not isinstance(error, Stopped):
        print(visible("".join(traceback.format_exception(error))), file=sys.stderr)
        for name, value in _circumstances(context).items():
            print(f"{name}: {visible(str(value))}", file=sys.stderr)
    message, status = _told(error)
    print_error(message)
    give_error(context, message, status)
    return status


def _told(error: Exception | Stopped) -> tuple[str, int]:
    """What is told of an error, and the exit status."""
    if isinstance(error, (SeaExportError, Stopped)):
        return str(error), error.exit_code
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "allocate memory" in str(error):
        message = _NO_MEMORY
    elif isinstance(error, OSError):
        message = reason(error)
    else:
        message = (
            f"{type(error).__name__}: {first_line(error)}. The program does not expect this error. Run it again with "
            "--debug, and report the output."
        )
    return message, SeaExportError.exit_code


def _circumstances(context: click.Context) -> dict[str, object]:
    options = dict(context.meta.get(_key("command"), {}))
    command = options.pop("name", None)
    return {
        **system(),
        "versions": ", ".join(f"{name} {version}" for name, version in library_versions(optional=True).items()),
        "devices": "; ".join(devices()),
        "command": command,
        "options": ", ".join(f"{name}={value!r}" for name, value in options.items()),
    }


def _remember(context: click.Context, option: click.Parameter, value: bool) -> None:
    context.meta[_key(str(option.name))] = value or _asked(context, str(option.name))
    if _asked(context, "verbose") and _asked(context, "quiet"):
        raise click.UsageError("--verbose: it and --quiet exclude each other. Choose one of them.", context)


def _asked(context: click.Context, name: str) -> bool:
    return bool(context.meta.get(_key(name), False))


def _key(name: str) -> str:
    return f"sea_export.{name}"
