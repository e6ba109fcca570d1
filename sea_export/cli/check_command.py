"""`sea-export check`: what is wrong with demonstrations, before they are believed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from sea_export.cli.click_options import options
from sea_export.cli.reporting import reported
from sea_export.doctor.check_options import CheckOptions
from sea_export.model.run_options import RunOptions

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sea_export.demonstrations.findings import Finding


@click.command("check")
@click.argument("demonstrations")
@click.argument("model", required=False)
@options(check=CheckOptions, run=RunOptions)
@reported
def command(demonstrations: str, model: str | None, check: CheckOptions, run: RunOptions) -> None:
    """Look for what is wrong with DEMONSTRATIONS, and with MODEL also for what their activations show.

    DEMONSTRATIONS is a file, a Hub dataset id, builtin:truthfulness or builtin:fairness. Looked for are duplicates,
    contradictions, patterns that tell the two sides apart without their meaning (length, first words, last characters),
    other writing systems, and rows of a benchmark (--against); with MODEL also how much of the difference of the
    activations is length, swapped labels and outliers. Exits with 1 if something is found.
    """
    from sea_export.demonstrations.findings import text_findings
    from sea_export.demonstrations.load import read_demonstrations
    from sea_export.demonstrations.tables import check_source
    from sea_export.model.location import check_model_name, locate_model

    for one in check.against:
        check_source(one.partition("=")[2])
    if model is not None:
        check_model_name(model)
    read = read_demonstrations(check.demonstrations(demonstrations), check.seed)
    found = text_findings(read)
    if check.against or model is not None:
        from sea_export.doctor.check_demonstrations import leakage_findings, model_findings

        found += leakage_findings(read, check)
        if model is not None:
            from sea_export.cli.opening import begin_computing, opened_model

            begin_computing(run.threads)
            with opened_model(locate_model(model, run.revision), run, Path("check")) as opened:
                found += model_findings(read, opened, check)
    _print_findings(found, len(read), as_json=check.as_json)
    if found:
        raise click.exceptions.Exit(1)


def _print_findings(found: Sequence[Finding], count: int, *, as_json: bool) -> None:
    from sea_export.cli.terminal import console
    from sea_export.files.writing import json_text

    if as_json:
        record = {"demonstrations": count, "findings": [one.record() for one in found]}
        click.echo(json_text(record), nl=False)
        return
    console.print(f"{count:,} demonstrations; {f'{len(found)} things to look at' if found else 'nothing found'}.")
    for one in found:
        console.print(str(one), soft_wrap=True)
