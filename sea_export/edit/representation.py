"""An edit in one line of text, and as a table for notebooks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape

from sea_export.edit.changed_weights import ChangedWeights
from sea_export.edit.layer_edit import LayerEdit
from sea_export.edit.summary import LayerSummary, WeightSummary
from sea_export.model.targets import EMBEDDING, Target
from sea_export.text import ranges_text

__all__ = ["html_table", "one_line"]

_COLUMNS = ("layer", "module", "kept directions", "dropped directions", "rank of map", "relative change")


def one_line(layers: Mapping[Target, Sequence[LayerEdit]], changes: ChangedWeights) -> str:
    """What is edited, and how strongly.

    Args:
        layers: the edits of each target.
        changes: the changes of single weights.
    """
    components = sorted({target.component for target in layers if target.in_decoder})
    edited = "; ".join(
        [
            *(["embedding"] if EMBEDDING in layers else []),
            *(f"{one} of layers {ranges_text(t.layer for t in layers if t.component == one)}" for one in components),
            *([f"{len(changes)} weights"] if changes else []),
        ]
    )
    edits = [edit for own in layers.values() for edit in own]
    of_weights = [change for own in changes.values() for change in own]
    values = {edit.strength for edit in edits} | {change.strength for change in of_weights}
    strengths = " and ".join(f"{strength:.4g}" for strength in sorted(values))
    measured = [edit.relative_change for edit in edits if edit.relative_change is not None]
    change = f"; relative change {max(measured):.1%}" if measured else ""
    size = f"; hidden size {edits[0].size}" if edits else ""
    return f"SpectralEdit({edited}{size}; strength {strengths}{change})"


def html_table(layers: Mapping[Target, Sequence[LayerEdit]], changes: ChangedWeights) -> str:
    """A row for each layer edit, and for each change of a weight.

    Args:
        layers: the edits of each target.
        changes: the changes of single weights.
    """
    rows = [_cells(edit.summary(target)) for target in sorted(layers) for edit in layers[target]]
    rows += map(_weight_cells, changes.summary)
    body = "".join(_row("td", row) for row in rows)
    head = _row("th", _COLUMNS)
    return f"<p>{escape(one_line(layers, changes))}</p><table><thead>{head}</thead><tbody>{body}</tbody></table>"


def _row(tag: str, cells: Iterable[str]) -> str:
    return f"<tr>{''.join(f'<{tag}>{escape(cell)}</{tag}>' for cell in cells)}</tr>"


def _cells(layer: LayerSummary) -> tuple[str, ...]:
    return (
        str(layer.target.layer),
        layer.target.component,
        str(layer.positive_rank),
        str(layer.negative_rank),
        "" if layer.map_rank is None else str(layer.map_rank),
        "" if layer.relative_change is None else f"{layer.relative_change:.2%}",
    )


def _weight_cells(weight: WeightSummary) -> tuple[str, ...]:
    change = weight.relative_change
    layer = "" if weight.layer is None else str(weight.layer)
    return layer, weight.module, "", "", str(weight.rank), "" if change is None else f"{change:.2%}"
