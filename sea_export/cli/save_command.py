"""`sea-export save`: bake edits that were fitted before."""

from __future__ import annotations

from pathlib import Path

import click

from sea_export.cli.click_options import options
from sea_export.cli.completion import complete_files
from sea_export.cli.json_output import give_result, json_option
from sea_export.cli.reporting import reported
from sea_export.model.run_options import RunOptions, check_conversion
from sea_export.options import ExportOptions, check_strength


@click.command("save")
@click.argument("edits", nargs=-1, required=True, metavar="EDIT...", shell_complete=complete_files)
@click.argument("output", type=click.Path(path_type=Path))
@click.option(
    "--base",
    help="Hub id, directory or .gguf file of the base; by default the Hub id that the edit names.",
    shell_complete=complete_files,
)
@click.option("--strength", type=float, help="s in I + s (M - I) for each EDIT, instead of the strength that it has.")
@click.option("--layers", metavar="LIST", help="Only these layers of the edit: last:K, or a list such as 10-20,25.")
@options(run=RunOptions, export=ExportOptions)
@reported
@json_option
def command(
    edits: tuple[str, ...],
    output: Path,
    base: str | None,
    strength: float | None,
    layers: str | None,
    run: RunOptions,
    export: ExportOptions,
) -> None:
    """Bake one EDIT, or the product of several in the order given, into the checkpoint OUTPUT."""
    from sea_export.cli.early_process import early_process
    from sea_export.edit.base_of_edit import base_of_edits
    from sea_export.edit.stored_edit import read_stored_edit
    from sea_export.export.output import check_output
    from sea_export.model.layer_list import layers_of_edit
    from sea_export.model.location import locate_model
    from sea_export.model.quantization_methods import check_kept_storage

    check_conversion(dequantize=run.dequantize, requantize=export.requantize)
    if strength is not None:
        check_strength(strength)
    check_output(output, overwrite=export.overwrite)
    stored = [read_stored_edit(Path(directory)) for directory in edits]
    kept = (
        None if layers is None else layers_of_edit(sorted({target for one in stored for target in one.layers}), layers)
    )
    base = base or base_of_edits(stored)
    location = locate_model(base, run.revision)
    if export.requantize:
        check_kept_storage(location.path, location.name)

    with early_process(export, run) as process:
        # Nothing before this needs torch, which takes seconds to import.
        from sea_export.cli.opening import opened_model
        from sea_export.cli.printing import print_next_steps, print_saved
        from sea_export.cli.progress import saving_progress
        from sea_export.cli.terminal import console
        from sea_export.edit.spectral_edit import SpectralEdit, compose
        from sea_export.edit.summary import log_warnings
        from sea_export.saving import check_room_for, save_checkpoint

        loaded = [SpectralEdit.from_stored(one) for one in stored]
        edit = compose(loaded if strength is None else [one.with_strength(strength) for one in loaded])
        if kept is not None:
            edit = edit.with_layers(kept)
        log_warnings(edit.summary)
        with opened_model(location, run, output) as opened:
            check_room_for(opened.base, output, export)
            result = save_checkpoint(
                edit,
                opened.base,
                output,
                export,
                layerwise=run.layerwise,
                process=process,
                progress=saving_progress,
                announce=console.print,
            )
    print_saved(result, edit)
    print_next_steps(result.output, base)
    give_result("save", result)
