"""The command line: one module a command, imported when the command is used."""

from __future__ import annotations

import importlib

import click

from sea_export.cli.stopping import Stopped, stoppable
from sea_export.errors import SeaExportError, reason

__all__ = ["main"]

_COMMANDS = ("fit-and-save", "fit", "save", "verify", "inspect", "diff", "evaluate", "tune", "compare", "push")


class _CommandGroup(click.Group):
    """Commands live in modules of their own names; errors of ours become one line and an exit status."""

    def list_commands(self, context: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in _COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"sea_export.cli.{name.replace('-', '_')}").command
        return command

    def invoke(self, context: click.Context) -> object:
        try:
            with stoppable():
                return super().invoke(context)
        except Stopped as stopped:
            click.echo(f"Error: {stopped}", err=True)
            context.exit(stopped.exit_code)
        except SeaExportError as error:
            if context.params["debug"]:
                raise
            click.echo(f"Error: {error}", err=True)
            context.exit(error.exit_code)
        except BrokenPipeError:
            raise  # nobody reads the output any more, which click sees to
        except OSError as error:
            if context.params["debug"]:
                raise
            click.echo(f"Error: {reason(error)}", err=True)
            context.exit(SeaExportError.exit_code)


@click.group(cls=_CommandGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="sea-export")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def main(debug: bool) -> None:
    """Fit a spectral edit of a language model's activations and bake it into a checkpoint that loads anywhere."""
