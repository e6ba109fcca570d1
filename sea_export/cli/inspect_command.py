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
    from sea_export.cli import jobs
    from sea_export.cli.terminal import console
    from sea_export.edit.spectral_edit import SpectralEdit
    from sea_export.evaluation.drawing import check_picture
    from sea_export.export.fetch import fetch_edit

    for picture in filter(None, (inspect.plot, inspect.plot_activations)):
        check_picture(picture)
    loaded = SpectralEdit.load(fetch_edit(edit))
    if inspect.plot_activations is not None:
        from sea_export.cli.inspect_job import draw_activations

        draw_activations(loaded, inspect.plot_activations, inspect, data, run)
        console.print(f"Saved the picture to {inspect.plot_activations}.")
    jobs.print_layers(loaded)
    jobs.print_warnings(loaded)
    if inspect.plot is not None:
        from sea_export.evaluation.plots import plot_edit

        plot_edit(loaded, inspect.plot)
        console.print(f"Saved the picture to {inspect.plot}.")
