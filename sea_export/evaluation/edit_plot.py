"""A picture of an edit: spectra, ranks, and how much it changes in each layer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sea_export.edit.layer_edit import LayerEdit
from sea_export.edit.spectral_edit import SpectralEdit
from sea_export.errors import InputError
from sea_export.evaluation.drawing import BLUE, GREEN, INK, PURPLE, VERMILION, picture, plain
from sea_export.model.targets import Target

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_edit"]

_SHOWN_VALUES = 64
_LABELLED_LAYERS = 10
_LABEL_CHARACTERS = 24
"""So many stand below a panel with space between the labels."""
_SMALLEST_SHARE = 1e-6
"""A direction of less of a spectrum is not told from rounding."""


def plot_edit(edit: SpectralEdit, file: Path) -> None:
    """Draws relative change and signature of each layer, and of spectral edits spectra, cumulative variance and ranks.

    Args:
        edit: the edit.
        file: the picture to write. Its ending decides the format (.png, .pdf, .svg).

    Raises:
        InputError: matplotlib is missing, the file cannot be written, or the edit has no layer to draw.
    """
    if not edit.layers:
        raise InputError(
            "--plot: the edit changes single weights, which have no spectra to draw. Leave the option out: the table "
            "has their ranks and changes."
        )
    labels = [_layer_label(target) for target in edit.targets for _ in edit.layers[target]]
    layers = [layer for target in edit.targets for layer in edit.layers[target]]
    # Other methods than the spectral one have neither singular values nor kept and dropped directions.
    spectral = any(layer.positive_values.numel() or layer.negative_values.numel() for layer in layers)
    rows = 3 if spectral else 1
    with picture(file, 2.4 * rows) as figure:
        # Each row has its own columns: the bars of colours in the first one take no width from the others.
        axes = np.array([part.subplots(1, 2) for part in figure.subfigures(rows, 1, squeeze=False)[:, 0]])
        if spectral:
            for column, kind in enumerate(("positive", "negative")):
                _draw_spectra(axes[0, column], layers, labels, kind)
            _draw_cumulative(axes[1, 0], layers, labels)
            _draw_ranks(axes[1, 1], layers)
        positions = np.arange(len(layers))
        change, signature = axes[-1]
        change.bar(positions, [100 * (layer.relative_change or 0) for layer in layers], color=INK)
        change.set(title=f"Relative change of {'neutral activations' if spectral else 'outputs'}", ylabel="%")
        signature.bar(positions, [layer.signature or 0 for layer in layers], color=INK)
        signature.set(title="Signature", ylabel="sum of singular values" if spectral else "norm")
        for axis in (*([axes[1, 1]] if spectral else []), change, signature):
            _label_layers(axis.xaxis, labels)
            axis.set_xlabel(_layer_axis(labels))
            plain(axis)


def _layer_label(target: Target) -> str:
    return {"mlp": f"{target.layer}", "attention": f"{target.layer} a"}.get(target.component, "e")


def _layer_axis(labels: Sequence[str]) -> str:
    return "layer (a: attention)" if any(label.endswith("a") for label in labels) else "layer"


def _label_layers(axis: Any, labels: Sequence[str]) -> None:
    """Labels every layer, or every second, third, … if not all labels fit beside each other."""
    shown = min(_LABELLED_LAYERS, _LABEL_CHARACTERS // max(map(len, labels)))
    step = -(-len(labels) // shown)
    axis.set_ticks(np.arange(0, len(labels), step), labels[::step])


def _draw_spectra(axis: Axes, layers: Sequence[LayerEdit], labels: Sequence[str], kind: str) -> None:
    """Heat map of the share of the squared spectrum by layer and direction, on a logarithmic scale."""
    from matplotlib import colormaps
    from matplotlib.colors import LinearSegmentedColormap, LogNorm

    # Without its darkest part, which a dark page swallows.
    shares_map = LinearSegmentedColormap.from_list("shares", colormaps["cividis"](np.linspace(0.2, 1, 256)))

    rows = [_shares(layer, kind)[:_SHOWN_VALUES] for layer in layers]
    width = max(1, *(int(np.count_nonzero(row > _SMALLEST_SHARE)) for row in rows))
    shares = np.full((len(layers), width), np.nan)
    for row, shown in enumerate(rows):
        shares[row, : len(shown)] = np.maximum(shown[:width], _SMALLEST_SHARE)
    image = axis.imshow(
        shares,
        aspect="auto",
        cmap=shares_map,
        interpolation="nearest",
        norm=LogNorm(vmin=min(np.nanmin(shares), 0.1), vmax=1),
        extent=(0.5, width + 0.5, len(layers) - 0.5, -0.5),
    )
    _label_layers(axis.yaxis, labels)
    sign = "+" if kind == "positive" else "-"
    axis.set(title=f"Spectrum of Ω{sign}", xlabel="direction", ylabel=_layer_axis(labels))
    axis.locator_params(axis="x", integer=True)
    axis.figure.colorbar(image, ax=axis, label="share of Σ σ²")


def _shares(layer: LayerEdit, kind: str) -> np.ndarray[Any, Any]:
    squares = getattr(layer, f"{kind}_values").double().square().numpy()
    shares: np.ndarray[Any, Any] = squares / max(float(squares.sum()), 1e-300)
    return shares


def _draw_ranks(axis: Axes, layers: Sequence[LayerEdit]) -> None:
    """The number of kept and of dropped directions of each layer."""
    positions = np.arange(len(layers))
    bars = ((-0.2, "positive", BLUE, "", "kept"), (0.2, "negative", VERMILION, "///", "dropped"))
    for offset, kind, color, hatch, name in bars:
        ranks = [getattr(layer, kind).shape[1] for layer in layers]
        axis.bar(
            positions + offset, ranks, width=0.4, color=color, hatch=hatch, edgecolor="white", linewidth=0, label=name
        )
    axis.set(title="Rank of the edit", ylabel="directions")
    axis.locator_params(axis="y", integer=True)
    _legend_above(axis, lines=1)


def _draw_cumulative(axis: Axes, layers: Sequence[LayerEdit], labels: Sequence[str]) -> None:
    """Share of the squared spectra that the first k directions explain, one line per layer."""
    from matplotlib.colors import LinearSegmentedColormap

    colors = LinearSegmentedColormap.from_list("first to last layer", [GREEN, PURPLE])(np.linspace(0, 1, len(layers)))
    ends = {0: f"layer {labels[0]}", len(layers) - 1: f"layer {labels[-1]}"}
    for kind, style, name in (("positive", "-", "Ω+"), ("negative", "--", "Ω-")):
        for index, layer in enumerate(layers):
            shares = _shares(layer, kind).cumsum()
            label = f"{name}, {ends[index]}" if index in ends else None
            axis.plot(
                np.arange(1, len(shares) + 1), 100 * shares, style, color=colors[index], linewidth=1.2, label=label
            )
    most = max(max(layer.positive_values.numel(), layer.negative_values.numel(), 1) for layer in layers)
    axis.set(title="Explained variance", xlabel="directions", ylabel="% of Σ σ²", xscale="log", xlim=(1, most))
    _legend_above(axis, lines=2)
    axis.grid()
    plain(axis)


def _legend_above(axis: Axes, lines: int) -> None:
    """A legend between the title and the frame, where it covers nothing."""
    axis.set_title(axis.get_title(), pad=8 + 13 * lines)
    axis.legend(loc="lower center", bbox_to_anchor=(0.5, 1), borderaxespad=0.2, ncols=2)
