"""`sea-export fit-and-save`: the main job."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from sea_export.cli.click_options import (
    build_fit_options,
    build_save_options,
    cache_option,
    demonstration_options,
    fit_options,
    model_options,
    save_options,
    visibility_option,
)
from sea_export.cli.reporting import reported
from sea_export.errors import SeaExportError
from sea_export.options import check_format


@click.command("fit-and-save")
@click.argument("model")
@click.argument("output", type=click.Path(path_type=Path))
@demonstration_options
@fit_options
@model_options
@cache_option
@save_options
@click.option("--push", "repo_id", metavar="REPO_ID", help="Push OUTPUT to this repository of the Hub afterwards.")
@visibility_option
@reported
def command(model: str, output: Path, cache: Path | None, repo_id: str | None, public: bool, **values: Any) -> None:
    """Fit an edit of MODEL, bake it into the checkpoint OUTPUT, and verify that it is the edit.

    MODEL is a Hub id, a local directory, or a .gguf file. With --push, whether OUTPUT may be pushed is found out before
    anything is fitted, and the repository is made.
    """
    options, saving = build_fit_options(values), build_save_options(values)
    check_format(options, saving)
    from sea_export.cli import jobs
    from sea_export.cli.terminal import console
    from sea_export.export.output import check_output
    from sea_export.hub.destination import open_destination
    from sea_export.hub.push import check_published_base
    from sea_export.saving import needed_bytes, save_checkpoint

    check_output(output, overwrite=saving.overwrite, needed_bytes=0)
    demonstrations = jobs.read_demonstrations(values)
    with jobs.joined_job() as processes, jobs.opened_model(model, values, output) as opened:
        check_output(output, overwrite=saving.overwrite, needed_bytes=needed_bytes(opened.base, output, saving.format))
        stored = opened.places(options, saving)
        if repo_id is not None and processes.is_first:
            if saving.format == "adapter":
                check_published_base(opened.base.location)
            open_destination(repo_id, public=public)
        edit = jobs.fit_with_progress(opened, demonstrations, options, cache, processes)
        if not processes.is_first:
            return
        with jobs.byte_progress("Writing", opened.base) as progress:
            result = save_checkpoint(
                edit,
                opened.base,
                output,
                saving,
                stored=stored,
                model=opened.model,
                progress=progress,
                announce=console.print,
            )
    jobs.print_saved(result, edit)
    if repo_id is not None:
        from sea_export.cli.push_job import push_output

        try:
            push_output(output, repo_id, public=public)
        except SeaExportError as error:
            again = f"sea-export push {output} {repo_id}{' --public' if public else ''}"
            raise SeaExportError(f"{error} The checkpoint is complete: `{again}` pushes it.") from error
