"""What `doctor` does, step by step, and how a diagnosis is printed."""

from __future__ import annotations

import json
from dataclasses import asdict

import click
import torch
from rich.table import Table

from sea_export.cli.jobs import chosen_device, read_demonstrations
from sea_export.cli.terminal import console, waiting
from sea_export.demonstrations.demonstration_options import DemonstrationOptions
from sea_export.doctor.diagnose import Machine, ModelDiagnosis, diagnose_machine, diagnose_model
from sea_export.doctor.doctor_options import DoctorOptions
from sea_export.errors import InputError
from sea_export.model.header_only import header_only_base
from sea_export.model.load_model import parse_dtype, quiet_transformers
from sea_export.model.run_options import RunOptions
from sea_export.options import FitOptions

__all__ = ["run_doctor"]


def run_doctor(
    model: str | None, options: DoctorOptions, data: DemonstrationOptions, fit: FitOptions, run: RunOptions
) -> None:
    """`sea-export doctor`."""
    output = options.output
    quiet_transformers()
    directory = output.resolve().parent
    if not directory.is_dir():
        raise InputError(f"{directory}, where {output.name} would be written, is not a directory: create it first")
    machine, diagnosis = diagnose_machine(directory), None
    if model is not None:
        dtype, demonstrations = parse_dtype(run.dtype), read_demonstrations(data, fit.capture.seed)
        with (
            waiting(f"Looking at {model}"),
            header_only_base(
                model,
                revision=run.revision,
                dtype=dtype,
                dequantize=run.dequantize,
                trust_remote_code=run.trust_remote_code,
            ) as base,
        ):
            diagnosis = diagnose_model(
                base,
                demonstrations,
                fit,
                output,
                dtype=dtype,
                device=torch.device(chosen_device(run)),
                layerwise=run.layerwise,
            )
    if options.as_json:
        found = {"machine": asdict(machine), "model": diagnosis and asdict(diagnosis)}
        click.echo(json.dumps(found, indent=2, ensure_ascii=False))
    else:
        _print_machine(machine)
        if diagnosis is not None:
            _print_model(diagnosis)
    if diagnosis is not None and not diagnosis.works:
        raise click.exceptions.Exit(1)


def _print_machine(machine: Machine) -> None:
    for name, value in {**machine.system, **machine.versions}.items():
        console.print(f"{name}: {value}")
    for device in machine.devices:
        console.print(f"device {device}")
    for name, free in machine.free_memory.items():
        console.print(f"memory of {name}: {free / 1e9:.1f} GB free")
    console.print(f"disk of {machine.disk}: {machine.free_disk / 1e9:.1f} GB free", soft_wrap=True)


def _print_model(model: ModelDiagnosis) -> None:
    console.print(
        f"\n{model.name}: {model.architecture}, {model.parameters / 1e6:,.0f} million parameters, "
        f"{model.stored_bytes / 1e9:.2f} GB of weights; {model.places} places in {model.layers} layers would be edited,"
        f" fitted on {model.demonstrations} demonstrations ({model.tokens:,} tokens) in {model.dtype}, "
        f"{'a layer at a time' if model.layerwise else 'as a whole'} in memory.",
        soft_wrap=True,
    )
    table = Table("format", "works", "time, about", "memory, about", "disk")
    for one in model.formats:
        costs = (_time(one.seconds), f"{one.memory_bytes / 1e9:.1f} GB", f"{one.disk_bytes / 1e9:.2f} GB")
        table.add_row(one.format, "yes" if one.works else "no", *costs)
    console.print(table)
    for one in model.formats:
        if one.problem is not None:
            console.print(f"{one.format}: {one.problem}", soft_wrap=True)
    console.print(
        "Time is an estimate from small measurements on this machine as it is now: fit, writing and verification.",
        soft_wrap=True,
    )


def _time(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
