"""`sea-export fit`: fit only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from sea_export.cli.click_options import (
    build_fit_options,
    cache_option,
    demonstration_options,
    fit_options,
    model_options,
)
from sea_export.cli.reporting import reported


@click.command("fit")
@click.argument("model")
@click.argument("edit", type=click.Path(path_type=Path))
@demonstration_options
@fit_options
@model_options
@cache_option
@click.option("--trust-remote-code", is_flag=True, help="Run code that comes with the model.")
@click.option("--overwrite", is_flag=True, help="Replace an edit that sea-export wrote before.")
@reported
def command(model: str, edit: Path, overwrite: bool, cache: Path | None, **values: Any) -> None:
    """Fit an edit of MODEL and write it to the directory EDIT, for `save` to bake.

    MODEL is a Hub id, a local directory, or a .gguf file.
    """
    options = build_fit_options(values)
    from sea_export.cli import jobs
    from sea_export.cli.terminal import console
    from sea_export.export.output import check_output, staged_output

    check_output(edit, overwrite=overwrite, needed_bytes=0)
    demonstrations = jobs.read_demonstrations(values)
    with jobs.joined_job() as processes, jobs.opened_model(model, values, edit) as opened:
        fitted = jobs.fit_with_progress(opened, demonstrations, options, cache, processes)
        if not processes.is_first:
            return
        fitted = jobs.with_base_digests(fitted, opened)
    with staged_output(edit, overwrite=overwrite) as staging:
        fitted.save(staging)
    jobs.print_layers(fitted)
    console.print(
        f"Saved the edit to {edit}. Bake it with: sea-export save {edit} OUTPUT --base {model}", soft_wrap=True
    )
