"""`sea-export tune`: find the settings by measurement."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from sea_export.cli.click_options import build_save_options, demonstration_options, model_options, save_options
from sea_export.cli.reporting import reported
from sea_export.options import CENTERS, SITES, TARGETS, TEMPLATES, FitOptions

_PATH = click.Path(path_type=Path, dir_okay=False)


@click.command("tune")
@click.argument("model")
@click.argument("output", type=click.Path(path_type=Path))
@click.option("--benchmark", required=True, metavar="NAME[:PROMPT]=FILE", help="What is to get better: see evaluate.")
@click.option("--metric", help="Metric of the benchmark that is to get better; by default its main one.")
@click.option("--max-kl", default=0.2, show_default=True, help="Damage budget: mean KL from the base on neutral text.")
@click.option("--text", help="Passages for the damage: a .txt file, or a table with a column text; default: built in.")
@click.option("--trials", default=60, show_default=True, type=click.IntRange(min=1), help="Trials in all.")
@click.option("--timeout", type=float, help="Begin no further trial after so many seconds.")
@click.option("--storage", type=_PATH, help="Keep trials in this file; a search with equal settings goes on from it.")
@click.option("--choosing", default=0.4, show_default=True, help="Share of the rows to choose on; the others report.")
@click.option("--target", "targets", multiple=True, type=click.Choice(TARGETS), help="Try these only; repeatable.")
@click.option("--site", "sites", multiple=True, type=click.Choice(SITES), help="Try these only; repeatable.")
@click.option("--center", "centers", multiple=True, type=click.Choice(CENTERS), help="Try these only; repeatable.")
@click.option("--pick", default="best", show_default=True, help="best, knee, or the number of a trial.")
@click.option("--plot", type=_PATH, help="Write a picture (PNG, PDF, SVG) of score against KL.")
@click.option("--json", "json_file", type=_PATH, help="Write settings and figures here; by default OUTPUT.tune.json.")
@click.option(
    "--template", type=click.Choice(TEMPLATES), default=FitOptions.template, show_default=True,
    help="How demonstrations become text.",
)  # fmt: skip
@click.option("--batch-tokens", default=2048, show_default=True, help="About how many tokens a forward pass computes.")
@click.option("--seed", default=0, show_default=True, help="Seed of the search and of all samples.")
@demonstration_options
@model_options
@save_options
@reported
def command(model: str, output: Path, **values: Any) -> None:
    """Search layers, target, truncation, strength and more for the best benchmark score within a damage budget.

    Settings are chosen on a part of the benchmark's rows and reported on the others. The chosen edit is baked into
    the checkpoint OUTPUT. MODEL is a Hub id, a local directory, or a .gguf file.
    """
    saving = build_save_options(values)
    from sea_export.cli.tune_job import run_tuning

    run_tuning(model, output, saving, values)
