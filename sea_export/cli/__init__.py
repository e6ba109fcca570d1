"""The command line: one module for each command, which is imported when the command is used."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from sea_export.cli.json_output import give_error
from sea_export.cli.reporting import reporting_options, tell_failure
from sea_export.cli.stopping import Stopped, Stops, stoppable
from sea_export.cli.streams import lasting_streams
from sea_export.cli.terminal import print_error
from sea_export.errors import SeaExportError, printable, reason
from sea_export.files.nearest_name import meant
from sea_export.text import is_utf8

__all__ = ["main"]

_COMMANDS = (
    "fit-and-save",
    "fit",
    "import",
    "save",
    "verify",
    "inspect",
    "diff",
    "evaluate",
    "tune",
    "compare",
    "chat",
    "push",
    "reproduce",
    "extract",
    "patch",
    "doctor",
    "check",
    "recipes",
)


class _CommandGroup(click.Group):
    """Each command is in the module of its name. Errors become one line and an exit status."""

    def list_commands(self, context: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in _COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"sea_export.cli.{name.replace('-', '_')}_command").command
        return command

    def resolve_command(
        self, context: click.Context, arguments: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = arguments[0]
        # Click looks for the nearest name among commands that are imported already, which are none.
        if name not in _COMMANDS and not name.startswith("-") and not context.resilient_parsing:
            context.fail(f"{name}: there is no such command{meant(name, _COMMANDS)}. sea-export --help lists them.")
        return super().resolve_command(context, arguments)

    def main(self, *arguments: Any, **options: Any) -> Any:
        try:
            with lasting_streams():
                return super().main(*arguments, **options)
        except OSError as error:  # what was printed last is not on the disk
            print_error(reason(error))
            sys.exit(SeaExportError.exit_code)

    def make_context(self, *arguments: Any, **options: Any) -> click.Context:
        with _printable_messages():
            return super().make_context(*arguments, **options)

    def parse_args(self, context: click.Context, arguments: list[str]) -> list[str]:
        wrong = next((one for one in arguments if not is_utf8(one)), None)
        if wrong is not None:
            raise click.UsageError(f"{wrong}: it is not UTF-8 text. Rename the file, or write it in UTF-8.", context)
        return super().parse_args(context, arguments)

    def invoke(self, context: click.Context) -> object:
        stops = Stops()
        try:
            with stoppable(stops), _printable_messages():
                result = super().invoke(context)
                sys.stdout.flush()
                return result
        except click.ClickException as error:
            give_error(context, error.format_message(), error.exit_code)
            raise  # click tells it
        except (click.exceptions.Exit, click.Abort):
            raise  # click handles these
        except (Exception, Stopped) as error:
            context.exit(tell_failure(context, stops.meant(error)))


@contextmanager
def _printable_messages() -> Iterator[None]:
    """Errors of usage, which quote what the user wrote, as one line without control characters."""
    try:
        yield
    except click.ClickException as error:
        vars(error)["message"] = printable(error.message)  # it is final for who handles the error
        raise


@click.group(cls=_CommandGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="sea-export")
@reporting_options
def main() -> None:
    """Fit a spectral edit of a language model's activations and bake it into a checkpoint that loads anywhere.

    Exit status: 0 if the job is done; 1 if it failed, or if verify, check, doctor or reproduce has found something
    wrong; 2 for bad usage or bad input, before anything is written; 130 if it was stopped by Ctrl-C, and 128 and the
    number of the signal for another one.
    """
