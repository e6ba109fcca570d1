"""The tables of the layers of an edit, and of the weights that it changes, in words, with a legend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from sea_export.cli.terminal import console, plain_table

if TYPE_CHECKING:
    from sea_export.edit.summary import LayerSummary, WeightSummary

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
_WEIGHT_COLUMNS = {
    "weight of": "",
    "rank": "rank of what is added to the weight",
    "rows": "whether rows of the weight are scaled too",
    "strength": "",
    "change": "how much the weight changes, relative to its size",
}


def print_layers(layers: Sequence[LayerSummary], weights: Sequence[WeightSummary] = ()) -> None:
    """Prints what an edit does to each layer, and to each weight that it changes by itself, with a legend.

    Args:
        layers: the edited layers.
        weights: the changed weights.
    """
    if layers:
        _print_table(_COLUMNS, [_cells(layer) for layer in layers])
    if weights:
        _print_table(_WEIGHT_COLUMNS, [_weight_cells(weight) for weight in weights])


def _print_table(columns: Mapping[str, str], rows: Sequence[Sequence[str]]) -> None:
    """Prints rows and a legend. Columns that say nothing in any row are left out."""
    names = list(columns)
    shown = [index for index in range(len(names)) if any(row[index] for row in rows)]
    table = plain_table(*(names[index] for index in shown))
    for row in rows:
        table.add_row(*(row[index] for index in shown))
    console.print(table)
    for index in shown:
        if meaning := columns[names[index]]:
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


def _weight_cells(weight: WeightSummary) -> tuple[str, ...]:
    """The same for a changed weight."""
    return (
        weight.module,
        str(weight.rank),
        "scaled" if weight.scaled_rows else "",
        f"{weight.strength:.4g}",
        "" if weight.relative_change is None else f"{weight.relative_change:.2%}",
    )
