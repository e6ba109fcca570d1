"""`sea-export evaluate`: what a model scores, and what an edit has changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from sea_export.cli.click_options import model_options
from sea_export.cli.reporting import reported


@click.command("evaluate")
@click.argument("model")
@click.option(
    "--benchmark",
    "benchmarks",
    multiple=True,
    metavar="NAME[:PROMPT]=FILE",
    help="truthfulqa (prompts qa-primer, plain), bbq, crows-pairs or multiple-choice (prompts qa, none) with a file or "
    "a Hub dataset of its rows; or damage, which needs no file. May be given several times.",
)
@click.option(
    "--text", help="Passages for damage: a .txt file, or a table with a column text; by default a built-in set."
)
@click.option("--against", metavar="BASE", help="Measure this model too, and tell the differences.")
@click.option("--edit", type=click.Path(path_type=Path), help="Apply this edit at run time, against MODEL itself.")
@click.option("--limit", type=click.IntRange(min=2), help="Use a seeded sample of that many rows of each benchmark.")
@click.option("--seed", default=0, show_default=True, help="Seed of --limit, of intervals and of tests.")
@click.option("--batch-tokens", default=2048, show_default=True, help="About how many tokens a forward pass computes.")
@click.option("--json", "json_file", type=click.Path(path_type=Path, dir_okay=False), help="Write all figures here.")
@click.option("--plot", type=click.Path(path_type=Path, dir_okay=False), help="Write a picture (PNG, PDF, SVG).")
@click.option("--record", is_flag=True, help="Write the figures into the manifest and the model card of MODEL.")
@model_options
@click.option("--trust-remote-code", is_flag=True, help="Run code that comes with a model, as custom-code exports do.")
@reported
def command(model: str, **values: Any) -> None:
    """Measure MODEL on benchmarks, alone or against its base, with 95 % intervals and paired tests.

    MODEL is a base or an export of any format: a Hub id, a local directory, or a .gguf file.
    """
    from sea_export.cli.evaluate_job import run_evaluation

    run_evaluation(model, values)
