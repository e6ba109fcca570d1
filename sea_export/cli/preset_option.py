"""`--preset`: other defaults for the options of a command."""

from __future__ import annotations

import click

__all__ = ["preset_option"]


def _apply(context: click.Context, parameter: click.Parameter, name: str | None) -> None:
    """Gives the command the defaults of a preset, as far as it has these options."""
    from sea_export.fitting.presets import PRESETS

    if name is not None:
        own = {one.name for one in context.command.params}
        preset = {option: value for option, value in PRESETS[name].items() if option in own}
        context.default_map = {**preset, **(context.default_map or {})}  # what --config says comes first


preset_option = click.option(
    "--preset",
    type=click.Choice(("published-truthfulness", "published-fairness")),
    is_eager=True,
    expose_value=False,
    callback=_apply,
    help="Settings of the paper, without its system prompt, as defaults of the other options. Give --demonstrations: "
    "HaluEval's question answering for truthfulness, disambiguated rows of BBQ for fairness.",
)
