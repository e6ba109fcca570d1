"""`sea-export compare`: the same prompts, side by side."""

from __future__ import annotations

import click

from sea_export.cli.click_options import options
from sea_export.cli.reporting import reported
from sea_export.evaluation.evaluation_options import CompareOptions
from sea_export.model.run_options import RunOptions


@click.command("compare")
@click.argument("base")
@click.argument("output")
@options(compare=CompareOptions, run=RunOptions)
@reported
def command(base: str, output: str, compare: CompareOptions, run: RunOptions) -> None:
    """Answer the same prompts with BASE and with OUTPUT, greedily, and mark the words that differ.

    Each is a Hub id, a local directory, or a .gguf file; OUTPUT may be an export of any format. Without prompts of
    yours there are some built-in ones.
    """
    from sea_export.cli.compare_job import run_comparison

    run_comparison(base, output, compare, run)
