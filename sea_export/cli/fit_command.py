"""`sea-export fit`: fit only."""

from __future__ import annotations

from pathlib import Path

import click

from sea_export.cli.click_options import cache_option, options
from sea_export.cli.reporting import reported
from sea_export.demonstrations.demonstration_options import DemonstrationOptions
from sea_export.model.run_options import RunOptions
from sea_export.options import FitOptions


@click.command("fit")
@click.argument("model")
@click.argument("edit", type=click.Path(path_type=Path))
@options(data=DemonstrationOptions, fit=FitOptions, run=RunOptions)
@cache_option
@click.option("--overwrite", is_flag=True, help="Replace an edit that sea-export wrote before.")
@reported
def command(
    model: str,
    edit: Path,
    overwrite: bool,
    cache: Path | None,
    data: DemonstrationOptions,
    fit: FitOptions,
    run: RunOptions,
) -> None:
    """Fit an edit of MODEL and write it to the directory EDIT, for `save` to bake.

    MODEL is a Hub id, a local directory, or a .gguf file.
    """
    from sea_export.cli.opening import joined_job, opened_model
    from sea_export.cli.printing import print_layers
    from sea_export.cli.progress import fit_progress
    from sea_export.cli.terminal import console
    from sea_export.demonstrations.load import read_demonstrations
    from sea_export.export.output import check_output, check_room, staged_output
    from sea_export.fitting.fit_base import fit_base, with_weight_digests

    check_output(edit, overwrite=overwrite)
    demonstrations = read_demonstrations(data, fit.capture.seed)
    with joined_job() as processes, opened_model(model, run, edit) as opened:
        check_room(edit, opened.base.paths, needed_bytes=0)
        with fit_progress(len(demonstrations), processes) as progress:
            fitted = fit_base(opened, demonstrations, fit, progress, cache=cache, processes=processes)
        if not processes.is_first:
            return
        fitted = with_weight_digests(fitted, opened.base)
    with staged_output(edit, overwrite=overwrite) as staging:
        fitted.save(staging)
    print_layers(fitted)
    console.print(
        f"Saved the edit to {edit}. Bake it with: sea-export save {edit} OUTPUT --base {model}", soft_wrap=True
    )
