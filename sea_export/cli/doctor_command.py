"""`sea-export doctor`: what this machine is, and what a job would come to."""

from __future__ import annotations

import click

from sea_export.cli.click_options import options
from sea_export.cli.reporting import reported
from sea_export.demonstrations.demonstration_options import DemonstrationOptions
from sea_export.doctor.doctor_options import DoctorOptions
from sea_export.model.run_options import RunOptions
from sea_export.options import FitOptions


@click.command("doctor")
@click.argument("model", required=False)
@options(doctor=DoctorOptions, data=DemonstrationOptions, fit=FitOptions, run=RunOptions)
@reported
def command(
    model: str | None, doctor: DoctorOptions, data: DemonstrationOptions, fit: FitOptions, run: RunOptions
) -> None:
    """Show versions, devices, free disk and memory; of MODEL, whether and at what cost an edit would go into it.

    The weights of MODEL, which is a Hub id, a local directory or a .gguf file, are neither read nor downloaded. Time
    and memory are estimates. Exits with 1 when no format would work.
    """
    from sea_export.cli.doctor_job import run_doctor

    run_doctor(model, doctor, data, fit, run)
