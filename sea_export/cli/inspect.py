"""`sea-export inspect`: what an edit does to each layer."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("inspect")
@click.argument("edit", type=click.Path(path_type=Path))
@click.option("--plot", type=click.Path(path_type=Path, dir_okay=False), help="Write a picture (PNG, PDF, SVG) of it.")
def command(edit: Path, plot: Path | None) -> None:
    """Show ranks, spectra and relative change of each layer of EDIT, which may be an exported checkpoint."""
    from sea_export.cli import jobs
    from sea_export.edit import SpectralEdit

    loaded = SpectralEdit.load(edit)
    jobs.print_layers(loaded)
    jobs.print_warnings(loaded)
    if plot is not None:
        from sea_export.plots import plot_edit

        plot_edit(loaded, plot)
        jobs.console.print(f"Saved the picture to {plot}.")
