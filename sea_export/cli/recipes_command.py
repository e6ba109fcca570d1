"""`sea-export recipes`: commented files for `--config`."""

from __future__ import annotations

import click

from sea_export.cli.json_output import give_result, json_option
from sea_export.cli.reporting import reporting_options
from sea_export.files.nearest_name import meant
from sea_export.files.recipes import Recipes
from sea_export.files.recipes import recipes as read_recipes

__all__ = ["command"]


@click.group("recipes", invoke_without_command=True)
@reporting_options
@json_option
@click.pass_context
def command(context: click.Context) -> None:
    """List the recipes: commented files of options for --config.

    To change one: sea-export recipes show truthfulness > truthfulness.yaml
    """
    if context.invoked_subcommand is None:
        from sea_export.cli.terminal import console

        found = read_recipes()
        for one in found.recipes:
            console.print(f"{one.name:<15} {one.summary}", soft_wrap=True)
        give_result("recipes", found)


@command.command("show")
@click.argument("name", metavar="NAME", shell_complete=lambda context, parameter, start: _names(start))
@json_option
def show(name: str) -> None:
    """Print the recipe NAME."""
    from sea_export.cli.terminal import console

    recipes = read_recipes()
    found = recipes.named(name)
    if found is None:
        names = [one.name for one in recipes.recipes]
        raise click.UsageError(f"{name}: there is no such recipe{meant(name, names)}. Give one of {', '.join(names)}.")
    console.print(found.text, soft_wrap=True, end="")
    give_result("recipes", Recipes((found,)))


def _names(start: str) -> list[str]:
    return [one.name for one in read_recipes().recipes if one.name.startswith(start)]
