"""A picture of what an edit does to activations: along the direction from the negative ones to the positive ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from sea_export.capture.activations import Activations
from sea_export.edit.spectral_edit import SpectralEdit
from sea_export.evaluation.drawing import BLUE, INK, VERMILION, picture, plain
from sea_export.model.targets import Target

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_activations"]

_FEWEST, _MOST = 0.5, 99.5
"""Percentiles of the positions that a frame shows at least."""
_HEIGHT = 0.3
"""How far points lie apart in their row, which only makes them visible."""


@dataclass(frozen=True)
class _Positions:
    """Where activations lie between the mean of the negative ones, at 0, and that of the positive ones, at 1."""

    positive: Tensor
    negative: Tensor
    positive_edited: Tensor
    negative_edited: Tensor


def plot_activations(activations: Mapping[Target, Activations], edit: SpectralEdit, file: Path) -> None:
    """Draws the positive and negative activations of each layer, before and after the edit, along one direction.

    It is that from the mean of the negative to the mean of the positive activations of the base. Beyond the middle
    between them, an activation is nearer the mean of the positive ones; it is told for how many negative ones that
    holds.

    Args:
        activations: those of the layers to draw. Each of these layers is edited.
        edit: the edit.
        file: the picture to write. Its ending decides the format (.png, .pdf, .svg).

    Raises:
        InputError: matplotlib is missing, or the file cannot be written.
    """
    with picture(file, 2.1 * len(activations) + 0.5) as figure:
        panels = figure.subplots(len(activations), 1, squeeze=False)[:, 0]
        for axis, (target, kinds) in zip(panels, sorted(activations.items()), strict=True):
            positions = _positions(kinds, edit, target)
            _draw(axis, positions)
            before, after = (_nearer_positive(one) for one in (positions.negative, positions.negative_edited))
            shares = f"{before:.0%}, edited {after:.0%}"
            axis.set_title(f"layer {target.layer}, {target.component}. Negative nearer the positive: {shares}")
        figure.supxlabel(
            "0: mean of the negative activations of the base; 1: of the positive ones\n"
            "thick lines: means; dashed line: the middle",
            fontsize="medium",
        )


def _positions(kinds: Activations, edit: SpectralEdit, target: Target) -> _Positions:
    """Positions of (n, d) activations and of their edited ones, each (n,)."""
    start, end = kinds.negative.double().mean(dim=0), kinds.positive.double().mean(dim=0)
    direction = end - start
    scale = direction.square().sum().clamp(min=1e-300)

    def along(rows: Tensor) -> Tensor:
        return (rows.double() - start) @ direction / scale

    def edited(rows: Tensor) -> Tensor:
        for layer in edit.layers[target]:
            rows = layer.apply(rows)
        return rows

    return _Positions(
        along(kinds.positive), along(kinds.negative), along(edited(kinds.positive)), along(edited(kinds.negative))
    )


def _nearer_positive(positions: Tensor) -> float:
    return float((positions > 0.5).double().mean())


def _draw(axis: Axes, positions: _Positions) -> None:
    kinds = (
        ("positive", positions.positive, "^", BLUE),
        ("positive, edited", positions.positive_edited, "^", BLUE),
        ("negative", positions.negative, "v", VERMILION),
        ("negative, edited", positions.negative_edited, "v", VERMILION),
    )
    generator = np.random.default_rng(0)
    axis.axvline(0.5, color=INK, linestyle="--", linewidth=1)
    ends = []
    for row, (name, values, marker, color) in enumerate(kinds):
        shown = values.numpy()
        heights = row + generator.uniform(-_HEIGHT, _HEIGHT, len(shown))
        inside = "none" if "edited" in name else color
        look: dict[str, Any] = {"marker": marker, "edgecolors": color, "facecolors": inside, "linewidths": 0.8}
        axis.scatter(shown, heights, s=12, alpha=0.8, label=name, **look)
        mean = float(shown.mean())
        axis.plot([mean, mean], [row - 0.42, row + 0.42], color=INK, linewidth=2.5)
        ends += [*np.percentile(shown, [_FEWEST, _MOST]), mean]
    margin = 0.05 * (max(ends) - min(ends)) + 1e-9
    axis.set(xlim=(min(ends) - margin, max(ends) + margin), ylim=(len(kinds) - 0.5, -0.5))
    axis.set_yticks(range(len(kinds)), [name for name, *_ in kinds])
    plain(axis)
