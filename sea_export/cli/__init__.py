"""The command line: one module for each command, which is imported when the command is used."""

from __future__ import annotations

import importlib

import click

from sea_export.cli.reporting import reporting_options, tell_failure
from sea_export.cli.stopping import Stopped, stoppable

__all__ = ["main"]

_COMMANDS = (
    "fit-and-save",
    "fit",
    "save",
    "verify",
    "inspect",
    "diff",
    "evaluate",
    "tune",
    "compare",
    "push",
    "reproduce",
    "doctor",
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

    def invoke(self, context: click.Context) -> object:
        try:
            with stoppable():
                return super().invoke(context)
        except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise  # click handles these; after a broken pipe nobody reads the output
        except (Exception, Stopped) as error:
            context.exit(tell_failure(context, error))


@click.group(cls=_CommandGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="sea-export")
@reporting_options
def main() -> None:
    """Fit a spectral edit of a language model's activations and bake it into a checkpoint that loads anywhere."""
