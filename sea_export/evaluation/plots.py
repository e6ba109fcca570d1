"""Pictures of edits, activations and evaluations: legible in print, and without colour vision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from sea_export.capture.activations import Activations
from sea_export.edit.layer_edit import LayerEdit
from sea_export.edit.spectral_edit import SpectralEdit
from sea_export.evaluation.drawing import (
    BLUE,
    GREEN,
    GREY,
    VERMILION,
    check_picture,
    new_figure,
    plain,
    save_figure,
    shown_label,
)
from sea_export.evaluation.report import BenchmarkReport, MetricReport
from sea_export.model.targets import Target

if TYPE_CHECKING:
    from matplotlib.axes import Axes


__all__ = ["plot_activations", "plot_edit", "plot_reports"]

_SHOWN_VALUES = 64
_LABELLED_LAYERS = 16


def plot_edit(edit: SpectralEdit, file: Path) -> None:
    """Draws relative change and signature of each layer, and of spectral edits spectra, cumulative variance and ranks.

    Args:
        edit: the edit.
        file: the picture to write. Its ending decides the format (.png, .pdf, .svg).

    Raises:
        InputError: matplotlib is missing, or the file cannot be written.
    """
    check_picture(file)
    labels = [_layer_label(target) for target in edit.targets for _ in edit.layers[target]]
    layers = [layer for target in edit.targets for layer in edit.layers[target]]
    # Other methods than the spectral one have neither singular values nor kept and dropped directions.
    spectral = any(layer.positive_values.numel() or layer.negative_values.numel() for layer in layers)
    rows = 3 if spectral else 1
    figure = new_figure(11, 10 / 3 * rows)
    axes = figure.subplots(rows, 2, squeeze=False)
    if spectral:
        for column, kind in enumerate(("positive", "negative")):
            _draw_spectra(axes[0, column], layers, labels, kind)
        _draw_cumulative(axes[1, 0], layers, labels)
        _draw_ranks(axes[1, 1], layers)
    positions = np.arange(len(layers))
    change, signature = axes[-1]
    change.bar(positions, [100 * (layer.relative_change or 0) for layer in layers], color=GREY)
    change.set(title="Relative change of neutral activations", ylabel="%")
    signature.bar(positions, [layer.signature or 0 for layer in layers], color=GREY)
    signature.set(title="Signature", ylabel="sum of singular values" if spectral else "norm")
    for axis in (*([axes[1, 1]] if spectral else []), change, signature):
        _label_layers(axis.xaxis, labels)
        axis.set_xlabel(_layer_axis(labels))
        plain(axis)
    save_figure(figure, file)


def _layer_label(target: Target) -> str:
    return {"mlp": f"{target.layer}", "attention": f"{target.layer} a"}.get(target.component, "e")


def _layer_axis(labels: Sequence[str]) -> str:
    return "layer (a: attention)" if any(label.endswith("a") for label in labels) else "layer"


def _label_layers(axis: Any, labels: Sequence[str]) -> None:
    """Labels every layer, or every second, third, … if not all labels fit beside each other."""
    step = -(-len(labels) // _LABELLED_LAYERS)
    axis.set_ticks(np.arange(0, len(labels), step), labels[::step])


def _draw_spectra(axis: Axes, layers: Sequence[LayerEdit], labels: Sequence[str], kind: str) -> None:
    """Heat map of the share of the squared spectrum by layer and direction, on a logarithmic scale."""
    from matplotlib.colors import LogNorm

    shares = np.full((len(layers), _SHOWN_VALUES), np.nan)
    for row, layer in enumerate(layers):
        shown = _shares(layer, kind)[:_SHOWN_VALUES]
        shares[row, : len(shown)] = shown
    image = axis.imshow(
        shares,
        aspect="auto",
        cmap="cividis",
        interpolation="nearest",
        norm=LogNorm(vmin=1e-6, vmax=1),
        extent=(0.5, _SHOWN_VALUES + 0.5, len(layers) - 0.5, -0.5),
    )
    _label_layers(axis.yaxis, labels)
    sign = "+" if kind == "positive" else "-"
    axis.set(title=f"Spectrum of Ω{sign}", xlabel="direction", ylabel=_layer_axis(labels))
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
        axis.bar(positions + offset, ranks, width=0.4, color=color, hatch=hatch, edgecolor="white", label=name)
    axis.set(title="Rank of the edit", ylabel="directions")
    axis.legend(frameon=False)


def _draw_cumulative(axis: Axes, layers: Sequence[LayerEdit], labels: Sequence[str]) -> None:
    """Share of the squared spectra that the first k directions explain, one line per layer."""
    from matplotlib import colormaps

    colors = colormaps["viridis"](np.linspace(0, 0.9, len(layers)))
    ends = {0: f"layer {labels[0]}", len(layers) - 1: f"layer {labels[-1]}"}
    for kind, style, name in (("positive", "-", "Ω+"), ("negative", "--", "Ω-")):
        for index, layer in enumerate(layers):
            shares = _shares(layer, kind).cumsum()
            label = f"{name}, {ends[index]}" if index in ends else None
            axis.plot(
                np.arange(1, len(shares) + 1), 100 * shares, style, color=colors[index], linewidth=1.2, label=label
            )
    axis.set(title="Explained variance", xlabel="directions", ylabel="% of Σ σ²", xscale="log", ylim=(0, 102))
    axis.legend(frameon=False, loc="lower right")
    axis.grid(alpha=0.3)
    plain(axis)


def plot_activations(activations: Mapping[Target, Activations], edit: SpectralEdit, file: Path) -> None:
    """Draws the activations of each layer on the two directions in which they differ most.

    The directions are principal components of the neutral, positive and negative activations together.

    Args:
        activations: those of the layers to draw. Each of these layers is edited.
        edit: the edit. The negative activations are drawn before and after it.
        file: the picture to write. Its ending decides the format (.png, .pdf, .svg).

    Raises:
        InputError: matplotlib is missing, or the file cannot be written.
    """
    check_picture(file)
    columns = min(len(activations), 3)
    rows = -(-len(activations) // columns)
    figure = new_figure(4.4 * columns, 4.2 * rows + 0.5)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axis in grid.flat[len(activations) :]:
        axis.set_visible(False)
    for axis, (target, kinds) in zip(grid.flat, sorted(activations.items()), strict=False):
        edited = kinds.negative
        for layer in edit.layers[target]:
            edited = layer.apply(edited)
        _draw_components(axis, kinds, edited)
        axis.set_title(f"layer {target.layer}, {target.component}")
    handles, names = grid.flat[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=len(names), frameon=False)
    save_figure(figure, file)


def _draw_components(axis: Axes, kinds: Activations, edited: Tensor) -> None:
    together = torch.cat([kinds.neutral, kinds.positive, kinds.negative]).double()
    mean = together.mean(dim=0)
    _, values, directions = torch.linalg.svd(together - mean, full_matrices=False)
    shares = 100 * values.square() / values.square().sum().clamp(min=1e-300)
    for rows, marker, color, name in (
        (kinds.neutral, "o", "#999999", "neutral"),
        (kinds.positive, "^", BLUE, "positive"),
        (kinds.negative, "v", VERMILION, "negative"),
        (edited, "x", GREEN, "negative, edited"),
    ):
        points = ((rows.double() - mean) @ directions[:2].T).numpy()
        axis.scatter(points[:, 0], points[:, 1], s=16, marker=marker, color=color, alpha=0.65, linewidths=1, label=name)
    axis.set(
        xlabel=f"1st principal component ({shares[0]:.0f} % of variance)",
        ylabel=f"2nd principal component ({shares[1]:.0f} %)",
    )
    axis.ticklabel_format(scilimits=(-2, 3))
    plain(axis)


def plot_reports(reports: Sequence[BenchmarkReport], file: Path) -> None:
    """Draws the metrics of an evaluation over all rows, of base and model, with their intervals.

    Args:
        reports: one for each benchmark.
        file: the picture to write. Its ending decides the format (.png, .pdf, .svg).

    Raises:
        InputError: matplotlib is missing, or the file cannot be written.
    """
    check_picture(file)
    panels = [
        (report, unit, [metric for metric in report.metrics if metric.unit == unit and not metric.group])
        for report in reports
        for unit in dict.fromkeys(metric.unit for metric in report.metrics)
    ]
    heights = [0.45 * len(metrics) + 0.9 for _, _, metrics in panels]
    figure = new_figure(8, sum(heights) + 0.5)
    axes = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axis, (report, unit, metrics) in zip(axes, panels, strict=True):
        _draw_intervals(axis, metrics, 100 if unit == "%" else 1)
        axis.set_title(shown_label(f"{report.benchmark} ({report.rows} rows)"), loc="left")
        axis.set_xlabel(shown_label(unit or "perplexity"))
    handles = {name: handle for axis in axes for handle, name in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=2, frameon=False)
    save_figure(figure, file)


def _draw_intervals(axis: Axes, metrics: Sequence[MetricReport], factor: float) -> None:
    kinds = ((-0.14, "base", "o", GREY, "base"), (0.14, "value", "s", BLUE, "this model"))
    for offset, kind, marker, color, name in kinds:
        shown = [(row, getattr(one, kind)) for row, one in enumerate(metrics) if getattr(one, kind) is not None]
        if not shown:
            continue
        means = [factor * interval.mean for _, interval in shown]
        below = [factor * (interval.mean - interval.low) for _, interval in shown]
        above = [factor * (interval.high - interval.mean) for _, interval in shown]
        axis.errorbar(
            means,
            [row + offset for row, _ in shown],
            xerr=np.maximum([below, above], 0),
            fmt=marker,
            color=color,
            capsize=3,
            label=f"{name}, 95 % interval",
        )
    axis.set_yticks(range(len(metrics)), [shown_label(one.name) for one in metrics])
    axis.set_ylim(len(metrics) - 0.5, -0.5)
    axis.grid(axis="x", alpha=0.3)
    plain(axis)
