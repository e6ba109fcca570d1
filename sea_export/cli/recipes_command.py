"""`sea-export recipes`: commented files for `--config`."""

from __future__ import annotations

from importlib.resources import files

import click

from sea_export.cli.reporting import reporting_options
from sea_export.files.nearest_name import meant

__all__ = ["command"]


def _recipes() -> dict[str, str]:
    """The recipes of the package: name -> text of the file."""
    folder = files("sea_export") / "data" / "recipes"
    found = sorted(folder.iterdir(), key=lambda file: file.name)
    return {file.name.removesuffix(".yaml"): file.read_text(encoding="utf-8") for file in found}


@click.group("recipes", invoke_without_command=True)
@reporting_options
@click.pass_context
def command(context: click.Context) -> None:
    """List the recipes: commented files of options for --config.

    To change one: sea-export recipes show truthfulness > truthfulness.yaml
    """
    if context.invoked_subcommand is None:
        for name, text in _recipes().items():
            click.echo(f"{name:<15} {text.splitlines()[0].lstrip('# ')}")


@command.command("show")
@click.argument("name", metavar="NAME")
def show(name: str) -> None:
    """Print the recipe NAME."""
    recipes = _recipes()
    if name not in recipes:
        names = ", ".join(recipes)
        raise click.UsageError(f"{name}: there is no such recipe{meant(name, recipes)}. Give one of {names}.")
    click.echo(recipes[name], nl=False)
