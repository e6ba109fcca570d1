"""`sea-export evaluate`: measure a model, and what an edit has changed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sea_export.cli.click_options import options
from sea_export.cli.completion import complete_files
from sea_export.cli.json_output import asked_file, give_result, json_option
from sea_export.cli.reporting import reported
from sea_export.evaluation.evaluation_options import EvaluateOptions
from sea_export.model.run_options import RunOptions

if TYPE_CHECKING:
    from sea_export.evaluation.report import BenchmarkReport


@click.command("evaluate")
@click.argument("model", shell_complete=complete_files)
@options(evaluate=EvaluateOptions, run=RunOptions)
@reported
@json_option
def command(model: str, evaluate: EvaluateOptions, run: RunOptions) -> None:
    """Measure MODEL on benchmarks, alone or against its base, with 95 % intervals and paired tests.

    MODEL is a base or an export of any format: a Hub id, a local directory, or a .gguf file. Or it is the directory of
    an edit, which is applied to its base at run time and measured against it.
    """
    from sea_export.evaluation.early_checks import check_evaluation, with_base_of_edit

    if (file := asked_file()) is not None:
        evaluate = evaluate.with_verdicts_beside(file)
    check_evaluation(*with_base_of_edit(model, evaluate), run)  # here too, before torch is imported

    from sea_export.cards.record_evaluation import record_evaluation
    from sea_export.cli.opening import begin_computing
    from sea_export.cli.progress import counting_progress
    from sea_export.cli.terminal import console
    from sea_export.errors import SeaExportError
    from sea_export.evaluation.evaluate import evaluate as evaluate_model

    begin_computing(run.threads)
    evaluation = evaluate_model(model, evaluate, run, counting_progress)
    _print_reports(evaluation.reports)
    give_result("evaluate", evaluation)
    if evaluate.plot is not None:
        evaluation.plot(evaluate.plot)
        console.print(f"Saved the picture to {evaluate.plot}.")
    if evaluate.record and evaluation.against is not None:
        record_evaluation(
            *(Path(model), evaluation.reports),
            against=evaluation.against,
            dtype=evaluation.dtype,
            sampled=evaluate.limit is not None,
        )
        console.print(f"Recorded the metrics in the manifest and the model card of {model}.")
    if evaluation.judging is not None and evaluation.judging.missing:
        console.print(f"{evaluation.judging.missing} verdicts of the judge are missing, and count as not judged.")
        if evaluation.judging.failure is not None:  # told last, so that what is known is written before
            raise SeaExportError(evaluation.judging.failure)


def _print_reports(reports: Sequence[BenchmarkReport]) -> None:
    """Prints a table for each benchmark."""
    from sea_export.cli.terminal import console, plain_table
    from sea_export.text import interval_text

    for report in reports:
        compared = any(metric.base is not None for metric in report.metrics)
        against = ("base", "this model", "difference", "p", "result") if compared else ("this model",)
        columns = ("metric", "unit", "better", *against)
        table = plain_table(*columns, title=f"{report.benchmark}, {report.rows} rows, 95 % intervals")
        for metric in report.metrics:
            value = interval_text(metric.value, metric.unit)
            if not compared:
                table.add_row(metric.title, metric.unit, metric.aim, value)
                continue
            table.add_row(
                metric.title,
                metric.unit,
                metric.aim,
                interval_text(metric.base, metric.unit),
                value,
                interval_text(metric.difference, metric.unit, signed=True),
                "" if metric.p_value is None else f"{metric.p_value:.2g}",
                metric.verdict,
            )
        console.print(table)
    if any(metric.difference is not None for report in reports for metric in report.metrics):
        console.print(
            "In brackets: 95 % intervals. difference: this model minus base, paired by row. p: of a paired "
            "permutation test. Where the interval of the difference holds 0, or p is above 0.05, there is no "
            "measurable gain.",
            soft_wrap=True,
        )
