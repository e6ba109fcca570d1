"""`sea-export compare`: the same prompts, side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from sea_export.cli.click_options import model_options
from sea_export.cli.reporting import reported


@click.command("compare")
@click.argument("base")
@click.argument("output")
@click.option("--prompts", help="A .txt file with a prompt a line, or a table with a column prompt or question.")
@click.option("--prompt", "own", multiple=True, metavar="TEXT", help="A prompt; may be given several times.")
@click.option(
    "--template",
    type=click.Choice(("auto", "chat", "qa", "none")),
    default="auto",
    show_default=True,
    help="How a prompt is put; auto: as the tokenizer's chat template says, and as Q: and A: where there is none.",
)
@click.option("--new-tokens", default=80, show_default=True, type=click.IntRange(min=1), help="Longest answer.")
@click.option("--html", type=click.Path(path_type=Path, dir_okay=False), help="Write a web page of one file.")
@model_options
@click.option("--trust-remote-code", is_flag=True, help="Run code that comes with a model, as custom-code exports do.")
@reported
def command(base: str, output: str, **values: Any) -> None:
    """Answer the same prompts with BASE and with OUTPUT, greedily, and mark the words that differ.

    Each is a Hub id, a local directory, or a .gguf file; OUTPUT may be an export of any format. Without prompts of
    yours there are some built-in ones.
    """
    from sea_export.cli.compare_job import run_comparison

    run_comparison(base, output, values)
