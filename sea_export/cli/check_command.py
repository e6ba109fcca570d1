"""`sea-export check`: what is wrong with demonstrations, before they are believed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from sea_export.cli.click_options import options
from sea_export.cli.completion import complete_files
from sea_export.cli.json_output import give_result, json_option
from sea_export.cli.reporting import reported
from sea_export.doctor.check_options import CheckOptions
from sea_export.model.run_options import RunOptions

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from sea_export.capture.opened_model import OpenedModel
    from sea_export.doctor.demonstration_check import DemonstrationCheck


@click.command("check")
@click.argument("demonstrations", shell_complete=complete_files)
@click.argument("model", required=False, shell_complete=complete_files)
@options(check=CheckOptions, run=RunOptions)
@reported
@json_option
def command(demonstrations: str, model: str | None, check: CheckOptions, run: RunOptions) -> None:
    """Look for what is wrong with DEMONSTRATIONS, and with MODEL also for what their activations show.

    DEMONSTRATIONS is a file, a Hub dataset id, builtin:truthfulness or builtin:fairness. Looked for are duplicates,
    contradictions, patterns that tell the two sides apart without their meaning (length, first words, last characters),
    other writing systems, and rows of a benchmark (--against); with MODEL also how much of the difference of the
    activations is length, swapped labels and outliers. Exits with 1 if something is found.
    """
    from sea_export.demonstrations.load import read_demonstrations
    from sea_export.demonstrations.tables import check_source
    from sea_export.doctor.demonstration_check import check_read_demonstrations
    from sea_export.model.location import check_model_name

    for one in check.against:
        check_source(one.partition("=")[2])
    if model is not None:
        check_model_name(model)
    read = read_demonstrations(check.demonstrations(demonstrations), check.seed)
    result = check_read_demonstrations(read, check, None if model is None else lambda: _opened(model, run))
    _print_findings(result)
    give_result("check", result)
    if result.findings:
        raise click.exceptions.Exit(1)


def _opened(model: str, run: RunOptions) -> AbstractContextManager[OpenedModel]:
    from sea_export.cli.opening import begin_computing, opened_model
    from sea_export.model.location import locate_model

    begin_computing(run.threads)
    return opened_model(locate_model(model, run.revision), run, Path("check"))


def _print_findings(result: DemonstrationCheck) -> None:
    from sea_export.cli.terminal import console

    found = result.findings
    told = f"{len(found)} things to look at" if found else "nothing found"
    console.print(f"{result.demonstrations:,} demonstrations; {told}.")
    for one in found:
        console.print(str(one), soft_wrap=True)
