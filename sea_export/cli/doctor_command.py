"""`sea-export doctor`: what this machine is, and what a job would come to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from sea_export.cli.click_options import demonstration_options, fit_options, model_options
from sea_export.cli.reporting import reported


@click.command("doctor")
@click.argument("model", required=False)
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    default=Path("sea-export-output"),
    show_default=True,
    help="What would be written: its disk is looked at.",
)
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
@demonstration_options
@fit_options
@model_options
@click.option("--trust-remote-code", is_flag=True, help="Run code that comes with the model.")
@reported
def command(model: str | None, output: Path, as_json: bool, **values: Any) -> None:
    """Show versions, devices, free disk and memory; of MODEL, whether and at what cost an edit would go into it.

    The weights of MODEL, which is a Hub id, a local directory or a .gguf file, are neither read nor downloaded. Time
    and memory are estimates. Exits with 1 when no format would work.
    """
    from sea_export.cli.doctor_job import run_doctor

    run_doctor(model, output, values, as_json=as_json)
