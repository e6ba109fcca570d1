"""Pictures of edits: legible in print, distinguishable without colour vision."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sea_export.edit import SpectralEdit
from sea_export.errors import InputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_edit"]

# The Okabe-Ito blue and vermilion: distinct for all common kinds of colour vision, and in grey.
_POSITIVE, _NEGATIVE = "#0072B2", "#D55E00"
_SHOWN_VALUES = 64


def plot_edit(edit: SpectralEdit, file: Path) -> None:
    """Draws singular values, ranks, and relative change of each layer.

    Args:
        edit: the edit.
        file: picture to write; its ending chooses the format (.png, .pdf, .svg).

    Raises:
        InputError: matplotlib is missing, or does not know the format.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise InputError("plots need matplotlib: pip install 'sea-export[plots]'") from None

    labels = [
        f"{target.layer}" if target.component == "mlp" else f"{target.layer} a"
        for target in edit.targets
        for _ in edit.layers[target]
    ]
    layers = [layer for target in edit.targets for layer in edit.layers[target]]
    figure = Figure(figsize=(10, 7), layout="constrained")
    axes = figure.subplots(2, 2)
    for column, (kind, color) in enumerate((("positive", _POSITIVE), ("negative", _NEGATIVE))):
        spectra = [getattr(layer, f"{kind}_values").double().numpy() for layer in layers]
        _draw_spectra(axes[0, column], spectra, labels, kind)
        ranks = [getattr(layer, kind).shape[1] for layer in layers]
        offset = (column - 0.5) * 0.4
        axes[1, 0].bar(
            np.arange(len(ranks)) + offset, ranks, width=0.4, color=color, hatch=("", "//")[column], edgecolor="white"
        )
    axes[1, 0].set(title="Directions kept (blue) and dropped (hatched)", ylabel="rank")
    axes[1, 1].bar(np.arange(len(layers)), [100 * layer.relative_change for layer in layers], color="#555555")
    axes[1, 1].set(title="Relative change of neutral activations", ylabel="%")
    for axis in axes[1]:
        axis.set_xticks(np.arange(len(labels)), labels)
        axis.set_xlabel("layer (a: attention)" if any(" a" in label for label in labels) else "layer")
        axis.spines[["top", "right"]].set_visible(False)
    try:
        figure.savefig(file, dpi=150)
    except ValueError as error:
        raise InputError(f"{file} cannot be drawn: {error}") from error


def _draw_spectra(axis: Axes, spectra: list[Any], labels: list[str], kind: str) -> None:
    """Heat map of each layer's share of the squared spectrum by direction, on a logarithmic scale."""
    from matplotlib.colors import LogNorm

    shares = np.full((len(spectra), _SHOWN_VALUES), np.nan)
    for row, values in enumerate(spectra):
        shown = values[:_SHOWN_VALUES] ** 2 / max(float((values**2).sum()), 1e-300)
        shares[row, : len(shown)] = shown
    image = axis.imshow(
        shares,
        aspect="auto",
        cmap="cividis",
        norm=LogNorm(vmin=1e-6, vmax=1),
        extent=(0.5, _SHOWN_VALUES + 0.5, len(spectra) - 0.5, -0.5),
    )
    axis.set_yticks(np.arange(len(labels)), labels)
    axis.set(title=f"Share of the {kind} spectrum", xlabel="direction", ylabel="layer")
    axis.figure.colorbar(image, ax=axis)
