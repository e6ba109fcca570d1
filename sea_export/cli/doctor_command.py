"""`sea-export doctor`: what this machine is, and what a job would cost on it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from sea_export.cli.click_options import options
from sea_export.cli.completion import complete_files
from sea_export.cli.json_output import give_result, json_option
from sea_export.cli.reporting import reported
from sea_export.demonstrations.demonstration_options import DemonstrationOptions
from sea_export.doctor.doctor_options import DoctorOptions
from sea_export.model.run_options import RunOptions
from sea_export.options import FitOptions

if TYPE_CHECKING:
    from sea_export.doctor.diagnose import ModelDiagnosis
    from sea_export.doctor.machine import Machine


@click.command("doctor")
@click.argument("model", required=False, shell_complete=complete_files)
@options(doctor=DoctorOptions, data=DemonstrationOptions, fit=FitOptions, run=RunOptions)
@reported
@json_option
def command(
    model: str | None, doctor: DoctorOptions, data: DemonstrationOptions, fit: FitOptions, run: RunOptions
) -> None:
    """Show versions, devices, free disk and memory; of MODEL, whether and at what cost an edit would go into it.

    The weights of MODEL, which is a Hub id, a local directory or a .gguf file, are neither read nor downloaded. Time
    and memory are estimates. Exits with 1 when no format would work.
    """
    from sea_export.demonstrations.tables import check_source
    from sea_export.doctor.job_check import check_job

    check_job(model, doctor.output)  # here too, before torch is imported
    if model is not None and not data.demonstrations.startswith("builtin:"):
        check_source(data.demonstrations)

    from sea_export.cli.opening import begin_computing
    from sea_export.cli.terminal import waiting
    from sea_export.doctor.diagnose import diagnose

    threads = begin_computing(run.threads)
    diagnosis = diagnose(model, doctor.output, data, fit, run, waiting, threads=threads)
    _print_machine(diagnosis.machine)
    if diagnosis.model is not None:
        _print_model(diagnosis.model)
    give_result("doctor", diagnosis)
    if diagnosis.model is not None and not diagnosis.model.works:
        raise click.exceptions.Exit(1)


def _print_machine(machine: Machine) -> None:
    from sea_export.cli.terminal import console

    for name, value in {**machine.system, **machine.versions}.items():
        console.print(f"{name}: {value}")
    for device in machine.devices:
        console.print(f"device {device}")
    if machine.threads is not None:
        console.print(f"threads: {machine.threads.count} ({machine.threads.reason})")
    for name, free in machine.free_memory.items():
        console.print(f"memory of {name}: {free / 1e9:.1f} GB free")
    console.print(f"disk of {machine.disk}: {machine.free_disk / 1e9:.1f} GB free", soft_wrap=True)


def _print_model(model: ModelDiagnosis) -> None:
    from sea_export.cli.terminal import console, plain_table

    console.print(
        f"\n{model.name}: {model.architecture}, {model.parameters / 1e6:,.0f} million parameters, "
        f"{model.stored_bytes / 1e9:.2f} GB of weights; {model.targets} targets in {model.layers} layers would be "
        f"edited, fitted on {model.demonstrations} demonstrations ({model.tokens:,} tokens) in {model.dtype} "
        f"({model.dtype_reason}), {'a layer at a time' if model.layerwise else 'as a whole'} in memory.",
        soft_wrap=True,
    )
    table = plain_table("format", "works", "time, about", "memory, about", "disk")
    for one in model.formats:
        costs = (_time(one.seconds), f"{one.memory_bytes / 1e9:.1f} GB", f"{one.disk_bytes / 1e9:.2f} GB")
        table.add_row(one.format, "yes" if one.works else "no", *costs)
    console.print(table)
    for one in model.formats:
        if one.problem is not None:
            console.print(f"{one.format}: {one.problem}", soft_wrap=True)
    for remark in model.remarks:
        console.print(remark, soft_wrap=True)
    console.print(
        "Time is an estimate from small measurements on this machine as it is now: fit, writing and verification, "
        "without the measuring of effect and damage.",
        soft_wrap=True,
    )


def _time(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
