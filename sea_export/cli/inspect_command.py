"""`sea-export inspect`: what an edit does to each layer."""

from __future__ import annotations

import click

from sea_export.cli.click_options import options
from sea_export.cli.reporting import reported
from sea_export.demonstrations.demonstration_options import DemonstrationOptions
from sea_export.evaluation.evaluation_options import InspectOptions
from sea_export.model.run_options import RunOptions


@click.command("inspect")
@click.argument("edit")
@options(inspect=InspectOptions, data=DemonstrationOptions, run=RunOptions)
@reported
def command(edit: str, inspect: InspectOptions, data: DemonstrationOptions, run: RunOptions) -> None:
    """Show ranks, spectra and relative change of each layer of EDIT.

    EDIT is a directory with an edit or an exported checkpoint, or the latter's Hub id (REPO_ID or REPO_ID@REVISION).
    """
    from sea_export.cli.opening import opened_model
    from sea_export.cli.printing import print_layers
    from sea_export.cli.terminal import console
    from sea_export.demonstrations.load import read_demonstrations
    from sea_export.edit.spectral_edit import SpectralEdit
    from sea_export.evaluation.drawing import check_picture
    from sea_export.evaluation.edited_activations import edited_activations
    from sea_export.evaluation.plots import plot_activations, plot_edit
    from sea_export.export.fetch import fetch_edit
    from sea_export.files.writing import check_destinations
    from sea_export.fitting.fit_base import log_warnings

    for picture in filter(None, (inspect.plot, inspect.plot_activations)):
        check_picture(picture)
    check_destinations([inspect.plot, inspect.plot_activations], read=[edit, inspect.model, data.demonstrations])
    loaded = SpectralEdit.load(fetch_edit(edit))
    if inspect.plot_activations is not None and inspect.model is not None:
        demonstrations = read_demonstrations(data, inspect.seed)
        with opened_model(inspect.model, run, inspect.plot_activations) as opened:
            activations = edited_activations(loaded, opened, demonstrations, inspect.plot_layers)
        plot_activations(activations, loaded, inspect.plot_activations)
        console.print(f"Saved the picture to {inspect.plot_activations}.")
    print_layers(loaded)
    log_warnings(loaded)
    if inspect.plot is not None:
        plot_edit(loaded, inspect.plot)
        console.print(f"Saved the picture to {inspect.plot}.")
