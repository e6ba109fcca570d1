"""`sea-export tune`: find the settings by measurement."""

from __future__ import annotations

from pathlib import Path

import click

from sea_export.cli.click_options import options
from sea_export.cli.reporting import reported
from sea_export.demonstrations.demonstration_options import DemonstrationOptions
from sea_export.model.run_options import RunOptions
from sea_export.options import ExportOptions
from sea_export.tuning.tuning_options import TuneOptions


@click.command("tune")
@click.argument("model")
@click.argument("output", type=click.Path(path_type=Path))
@options(tune=TuneOptions, data=DemonstrationOptions, run=RunOptions, export=ExportOptions)
@reported
def command(
    model: str, output: Path, tune: TuneOptions, data: DemonstrationOptions, run: RunOptions, export: ExportOptions
) -> None:
    """Search layers, target, truncation, strength and more for the best benchmark score within a damage budget.

    Settings are chosen on a part of the benchmark's rows and reported on the others. The chosen edit is baked into
    the checkpoint OUTPUT. MODEL is a Hub id, a local directory, or a .gguf file.
    """
    from sea_export.cli.tune_job import run_tuning

    run_tuning(model, output, tune, data, run, export)
