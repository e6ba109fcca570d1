"""`sea-export inspect`: what an edit does to each layer."""

from __future__ import annotations

from pathlib import Path

import click

from sea_export.cli.click_options import options
from sea_export.cli.completion import complete_files
from sea_export.cli.json_output import give_result, json_option
from sea_export.cli.reporting import reported
from sea_export.demonstrations.demonstration_options import DemonstrationOptions
from sea_export.evaluation.evaluation_options import InspectOptions
from sea_export.model.run_options import RunOptions


@click.command("inspect")
@click.argument("edit", shell_complete=complete_files)
@options(inspect=InspectOptions, data=DemonstrationOptions, run=RunOptions)
@reported
@json_option
def command(edit: str, inspect: InspectOptions, data: DemonstrationOptions, run: RunOptions) -> None:
    """Show ranks, spectra and relative change of each layer of EDIT, and of several edits what their product keeps.

    Of an imported adapter it shows the rank and the relative change of each weight.

    EDIT is a directory with an edit or an exported checkpoint, or the latter's Hub id (REPO_ID or REPO_ID@REVISION).
    """
    from sea_export.cli.layer_table import print_layers
    from sea_export.cli.printing import print_storage_errors
    from sea_export.cli.terminal import console
    from sea_export.edit.summary import log_warnings
    from sea_export.evaluation.drawing import check_picture
    from sea_export.evaluation.inspection import inspect as inspect_edit
    from sea_export.files.writing import check_destinations

    for picture in filter(None, (inspect.plot, inspect.plot_activations)):
        check_picture(picture)
    check_destinations([inspect.plot, inspect.plot_activations], read=[edit, inspect.model, data.demonstrations])
    found = inspect_edit(edit)  # without torch, which takes longer than everything else here
    if inspect.plot_activations is not None and inspect.model is not None:
        _plot_activations(found.directory, inspect.model, inspect.plot_activations, inspect, data, run)
    print_layers(found.layers, found.weights)
    if len({layer.target for layer in found.layers}) < len(found.layers):
        _print_composition(found.directory)
    print_storage_errors(found.storage_errors)
    log_warnings(found.layers)
    if inspect.plot is not None:
        found.plot(inspect.plot)
        console.print(f"Saved the picture to {inspect.plot}.")
    give_result("inspect", found)


def _print_composition(directory: Path) -> None:
    """Prints how much of each edit the product of several has, where a layer has several."""
    from sea_export.cli.terminal import console, plain_table
    from sea_export.edit.layer_algebra import kept_of_each
    from sea_export.edit.spectral_edit import SpectralEdit

    edit = SpectralEdit.load(directory)
    table = plain_table("layer", "edit", "strength", "kept")
    for target in edit.targets:
        edits = edit.layers[target]
        if len(edits) > 1 and all(one.why_unfoldable is None for one in edits):
            for number, (one, kept) in enumerate(zip(edits, kept_of_each(edits), strict=True), 1):
                table.add_row(str(target), str(number), f"{one.strength:.4g}", "" if kept is None else f"{kept:.1%}")
    console.print("Several edits are applied to one layer, one after the other:")
    console.print(table)
    console.print(
        "  kept: how much of the change of this edit the product of all has; 100% is all of it, 0% none, below 0% the "
        "opposite, and more than 100% where another edit changes the same",
        soft_wrap=True,
    )


def _plot_activations(
    directory: Path, model: str, picture: Path, inspect: InspectOptions, data: DemonstrationOptions, run: RunOptions
) -> None:
    from sea_export.cli.terminal import console
    from sea_export.demonstrations.load import read_demonstrations
    from sea_export.model.location import locate_model

    demonstrations = read_demonstrations(data, inspect.seed)
    location = locate_model(model, run.revision)

    from sea_export.cli.opening import begin_computing, opened_model
    from sea_export.edit.spectral_edit import SpectralEdit
    from sea_export.evaluation.activation_plot import plot_activations
    from sea_export.evaluation.edited_activations import edited_activations

    loaded = SpectralEdit.load(directory)
    begin_computing(run.threads)
    with opened_model(location, run, picture) as opened:
        activations = edited_activations(loaded, opened, demonstrations, inspect.plot_layers)
    plot_activations(activations, loaded, picture)
    console.print(f"Saved the picture to {picture}.")
