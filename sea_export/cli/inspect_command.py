"""`sea-export inspect`: what an edit does to each layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from sea_export.cli.click_options import demonstration_options, model_options
from sea_export.cli.reporting import reported

_PICTURE = click.Path(path_type=Path, dir_okay=False)


@click.command("inspect")
@click.argument("edit")
@click.option("--plot", type=_PICTURE, help="Write a picture (PNG, PDF, SVG) of spectra, ranks and changes.")
@click.option(
    "--plot-activations",
    type=_PICTURE,
    help="Write a picture of the demonstrations' activations and what the edit makes of them. Needs --model.",
)
@click.option("--model", help="For --plot-activations: the model that the edit was fitted on.")
@click.option("--plot-layers", help="For --plot-activations: which layers, such as 18,29; by default first to last.")
@demonstration_options
@model_options
@click.option("--seed", default=0, show_default=True, help="Seed of --limit.")
@click.option("--trust-remote-code", is_flag=True, help="Run code that comes with the model.")
@reported
def command(edit: str, plot: Path | None, plot_activations: Path | None, **values: Any) -> None:
    """Show ranks, spectra and relative change of each layer of EDIT.

    EDIT is a directory with an edit or an exported checkpoint, or the latter's Hub id (REPO_ID or REPO_ID@REVISION).
    """
    from sea_export.cli import jobs
    from sea_export.cli.terminal import console
    from sea_export.edit.spectral_edit import SpectralEdit
    from sea_export.evaluation.drawing import check_picture
    from sea_export.export.fetch import fetch_edit

    for picture in filter(None, (plot, plot_activations)):
        check_picture(picture)
    loaded = SpectralEdit.load(fetch_edit(edit))
    if plot_activations is not None:
        from sea_export.cli.inspect_job import draw_activations

        draw_activations(loaded, plot_activations, values)
        console.print(f"Saved the picture to {plot_activations}.")
    jobs.print_layers(loaded)
    jobs.print_warnings(loaded)
    if plot is not None:
        from sea_export.evaluation.plots import plot_edit

        plot_edit(loaded, plot)
        console.print(f"Saved the picture to {plot}.")
