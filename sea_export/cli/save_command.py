"""`sea-export save`: bake edits that were fitted before."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sea_export.cli.click_options import options
from sea_export.cli.reporting import reported
from sea_export.errors import InputError
from sea_export.model.run_options import RunOptions, check_conversion
from sea_export.options import ExportOptions, check_strength

if TYPE_CHECKING:
    from sea_export.edit.stored_edit import StoredEdit


@click.command("save")
@click.argument("edits", nargs=-1, required=True, metavar="EDIT...")
@click.argument("output", type=click.Path(path_type=Path))
@click.option("--base", help="Hub id, directory or .gguf file of the base; by default the Hub id that the edit names.")
@click.option("--strength", type=float, help="s in I + s (M - I) for each EDIT, instead of the strength that it has.")
@options(run=RunOptions, export=ExportOptions)
@reported
def command(
    edits: tuple[str, ...],
    output: Path,
    base: str | None,
    strength: float | None,
    run: RunOptions,
    export: ExportOptions,
) -> None:
    """Bake one EDIT, or the product of several in the order given, into the checkpoint OUTPUT."""
    from sea_export.cli.early_process import early_process
    from sea_export.edit.stored_edit import read_stored_edit
    from sea_export.export.output import check_output
    from sea_export.model.location import locate_model
    from sea_export.model.quantization_methods import check_kept_storage

    check_conversion(dequantize=run.dequantize, requantize=export.requantize)
    if strength is not None:
        check_strength(strength)
    check_output(output, overwrite=export.overwrite)
    stored = [read_stored_edit(Path(directory)) for directory in edits]
    location = locate_model(base or _base_of(stored), run.revision)
    if export.requantize:
        check_kept_storage(location.path, location.name)

    with early_process(export, run) as process:
        # Nothing before this needs torch, which takes seconds to import.
        from sea_export.cli.opening import opened_model
        from sea_export.cli.printing import print_saved
        from sea_export.cli.progress import byte_progress
        from sea_export.cli.terminal import console
        from sea_export.edit.spectral_edit import SpectralEdit, compose
        from sea_export.edit.summary import log_warnings
        from sea_export.saving import check_room_for, save_checkpoint

        loaded = [SpectralEdit.from_stored(one) for one in stored]
        edit = compose(loaded if strength is None else [one.with_strength(strength) for one in loaded])
        log_warnings(edit.summary)
        with opened_model(location, run, output) as opened, byte_progress("Writing", opened.base) as progress:
            check_room_for(opened.base, output, export)
            result = save_checkpoint(
                edit,
                opened.base,
                output,
                export,
                layerwise=run.layerwise,
                process=process,
                progress=progress,
                announce=console.print,
            )
    print_saved(result, edit)


def _base_of(edits: Sequence[StoredEdit]) -> str:
    """The Hub id of the base that the first of some edits names."""
    from sea_export.model.location import is_hub_id

    name: str = (edits[0].provenance.get("base") or {}).get("name", "")
    if not is_hub_id(name):
        raise InputError(
            f"--base: it is missing, and the edit names the local model {name!r}. Say where that model is."
        )
    return name
