"""The table of the layers of an edit, in words, with a legend."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sea_export.cli.terminal import console, plain_table

if TYPE_CHECKING:
    from sea_export.edit.summary import LayerSummary

__all__ = ["print_layers"]

_COLUMNS = {
    "layer": "",
    "directions": "kept of the positive activations / dropped of the negative ones, of so many that each have; of an "
    "imported edit, kept / removed",
    "first": "share of the positive activations' squared spectrum that the first direction alone explains",
    "rank": "rank of the map that is added",
    "change": "how much the edit changes activations there, relative to their size",
    "signature": "how strongly activations there tell positive from negative; see --layers signature:K",
    "constant": "error of the constant 1 that the edit reads from an activation, on demonstrations left out",
}
"""Column -> what it says, for the legend; empty where the name says it."""


def print_layers(layers: Sequence[LayerSummary]) -> None:
    """Prints ranks, spectra and relative change of each layer, and a legend of the columns.

    Args:
        layers: those of an edit. Columns that say nothing of any of them are left out.
    """
    rows = [_cells(layer) for layer in layers]
    names = list(_COLUMNS)
    shown = [index for index in range(len(names)) if any(row[index] for row in rows)]
    table = plain_table(*(names[index] for index in shown))
    for row in rows:
        table.add_row(*(row[index] for index in shown))
    console.print(table)
    for index in shown:
        if meaning := _COLUMNS[names[index]]:
            console.print(f"  {names[index]}: {meaning}", soft_wrap=True)


def _cells(layer: LayerSummary) -> tuple[str, ...]:
    """One text a column; an empty one where the layer has no such value."""
    spectral = layer.spectrum > 0
    ranks = f"{layer.positive_rank} / {layer.negative_rank}"
    return (
        str(layer.target),
        f"{ranks} of {layer.spectrum}" if spectral else ranks if layer.positive_rank or layer.negative_rank else "",
        f"{layer.first_share:.2%}" if spectral else "",
        "" if layer.map_rank is None else str(layer.map_rank),
        "" if layer.relative_change is None else f"{layer.relative_change:.2%}",
        "" if layer.signature is None else f"{layer.signature:.4g}",
        "" if layer.reader_error is None else f"{layer.reader_error:.3f}",
    )
