"""`sea-export save`: bake edits that were fitted before."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from sea_export.cli.click_options import options
from sea_export.cli.reporting import reported
from sea_export.errors import InputError
from sea_export.model.run_options import RunOptions
from sea_export.options import ExportOptions, check_storage

if TYPE_CHECKING:
    from sea_export.edit.spectral_edit import SpectralEdit


@click.command("save")
@click.argument("edits", nargs=-1, required=True, metavar="EDIT...")
@click.argument("output", type=click.Path(path_type=Path))
@click.option("--base", help="Hub id, directory or .gguf file of the base; by default the Hub id that the edit names.")
@options(run=RunOptions, export=ExportOptions)
@reported
def command(edits: tuple[str, ...], output: Path, base: str | None, run: RunOptions, export: ExportOptions) -> None:
    """Bake one EDIT, or the product of several in the order given, into the checkpoint OUTPUT."""
    check_storage(export, dequantize=run.dequantize)
    from sea_export.cli.opening import opened_model
    from sea_export.cli.printing import print_saved
    from sea_export.cli.progress import byte_progress
    from sea_export.cli.terminal import console
    from sea_export.edit.spectral_edit import SpectralEdit, compose
    from sea_export.export.output import check_output
    from sea_export.fitting.fit_base import log_warnings
    from sea_export.saving import check_room_for, save_checkpoint

    check_output(output, overwrite=export.overwrite)
    edit = compose([SpectralEdit.load(directory) for directory in edits])
    log_warnings(edit)
    with (
        opened_model(base or _base_of(edit), run, output) as opened,
        byte_progress("Writing", opened.base) as progress,
    ):
        check_room_for(opened.base, output, export)
        result = save_checkpoint(
            edit,
            opened.base,
            output,
            export,
            layerwise=run.layerwise,
            progress=progress,
            announce=console.print,
        )
    print_saved(result, edit)


def _base_of(edit: SpectralEdit) -> str:
    """The Hub id of the base that an edit names."""
    from sea_export.model.base import is_hub_id

    name: str = (edit.provenance.get("base") or {}).get("name", "")
    if not is_hub_id(name):
        raise InputError(
            f"--base: it is missing, and the edit names the local model {name!r}. Say where that model is."
        )
    return name
