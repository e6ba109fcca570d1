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
@click.option(
    "--only",
    metavar="LAYERS",
    help="Bake the edits of these layers alone: last:K, first:K, or a list such as 10-20,25.",
)
@click.option("--except", "without", metavar="LAYERS", help="Leave the edits of these layers out: a list.")
@options(run=RunOptions, export=ExportOptions)
@reported
@json_option
def command(
    edits: tuple[str, ...],
    output: Path,
    base: str | None,
    strength: float | None,
    only: str | None,
    without: str | None,
    run: RunOptions,
    export: ExportOptions,
) -> None:
    """Bake one EDIT, or the product of several in the order given, into the checkpoint OUTPUT.

    'EDIT*0.5' is an edit at half its strength. EDIT*-1 takes the change of an edit off, as steering in the other
    direction does, which is not its inverse. -EDIT is the same, and must stand after --, so that it is not read as an
    option:

    \b
    sea-export save truthful 'kind*0.5' 'rude*-1' out
    sea-export save --base org/model -- truthful -rude out

    A LoRA that was baked is taken off its output again by EDIT*-1 with --force. What remains is rounding: at most one
    unit in the last place of each number of a changed weight, before or after, whichever is larger. Of a DoRA, whose
    change depends on the weight, EDIT*-1 is not the inverse.
    """
    from sea_export.cli.early_process import early_process
    from sea_export.edit.base_of_edit import base_of_edits
    from sea_export.edit.edit_term import EditTerm
    from sea_export.edit.stored_edit import read_stored_edit
    from sea_export.export.output import check_output
    from sea_export.model.layer_list import layers_of_edit
    from sea_export.model.location import locate_model
    from sea_export.model.quantization_methods import check_kept_storage

    check_conversion(dequantize=run.dequantize, requantize=export.requantize)
    terms = [EditTerm.parse(text) for text in edits]
    if strength is not None:
        check_strength(strength)
        if any(term.factor != 1 for term in terms):
            raise click.UsageError("--strength: EDIT*FACTOR and -EDIT give strengths already. Leave one of them out.")
    check_output(output, overwrite=export.overwrite)
    stored = [read_stored_edit(term.directory) for term in terms]
    edited = sorted({layer for one in stored for layer in one.decoder_layers})
    kept = None if only is None else layers_of_edit(edited, only, "--only")
    left_out = None if without is None else layers_of_edit(edited, without, "--except")
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
        if strength is not None:
            loaded = [one.with_strength(strength) for one in loaded]
        edit = compose(
            [one if term.factor == 1 else one * term.factor for one, term in zip(loaded, terms, strict=True)]
        )
        if kept is not None:
            edit = edit.only(kept)
        if left_out is not None:
            edit = edit.without(left_out)
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
