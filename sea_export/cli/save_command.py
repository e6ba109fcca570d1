"""`sea-export save`: bake edits that were fitted before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from sea_export.cli.click_options import build_save_options, model_options, save_options
from sea_export.cli.reporting import reported


@click.command("save")
@click.argument("edits", nargs=-1, required=True, metavar="EDIT...")
@click.argument("output", type=click.Path(path_type=Path))
@click.option("--base", help="Hub id, directory or .gguf file of the base; by default the Hub id that the edit names.")
@model_options
@save_options
@reported
def command(edits: tuple[str, ...], output: Path, base: str | None, **values: Any) -> None:
    """Bake one EDIT, or the product of several in the order given, into the checkpoint OUTPUT."""
    saving = build_save_options(values)
    from sea_export.cli import jobs
    from sea_export.cli.terminal import console
    from sea_export.edit.spectral_edit import SpectralEdit, compose
    from sea_export.export.output import check_output
    from sea_export.saving import save_checkpoint

    check_output(output, overwrite=saving.overwrite, needed_bytes=0)
    edit = compose([SpectralEdit.load(directory) for directory in edits])
    jobs.print_warnings(edit)
    with (
        jobs.opened_model(base or jobs.base_of(edit), values, output) as opened,
        jobs.byte_progress("Writing", opened.base) as progress,
    ):
        result = save_checkpoint(edit, opened.base, output, saving, progress=progress, announce=console.print)
    jobs.print_saved(result, edit)
