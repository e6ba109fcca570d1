"""`sea-export evaluate`: what a model scores, and what an edit has changed."""

from __future__ import annotations

import click

from sea_export.cli.click_options import options
from sea_export.cli.reporting import reported
from sea_export.evaluation.evaluation_options import EvaluateOptions
from sea_export.model.run_options import RunOptions


@click.command("evaluate")
@click.argument("model")
@options(evaluate=EvaluateOptions, run=RunOptions)
@reported
def command(model: str, evaluate: EvaluateOptions, run: RunOptions) -> None:
    """Measure MODEL on benchmarks, alone or against its base, with 95 % intervals and paired tests.

    MODEL is a base or an export of any format: a Hub id, a local directory, or a .gguf file.
    """
    from sea_export.cli.evaluate_job import run_evaluation

    run_evaluation(model, evaluate, run)
