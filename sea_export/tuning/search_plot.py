"""A picture of a search: score against damage."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sea_export.evaluation.drawing import (
    BLUE,
    GREY,
    ORANGE,
    VERMILION,
    check_picture,
    new_figure,
    plain,
    save_figure,
)
from sea_export.evaluation.metrics import Metric

if TYPE_CHECKING:
    from sea_export.tuning.search import TrialResult

__all__ = ["plot_search"]


def plot_search(
    outcomes: Sequence[TrialResult],
    front: Sequence[TrialResult],
    chosen: TrialResult,
    default: TrialResult | None,
    metric: str,
    base: Metric,
    max_divergence: float,
    file: Path,
) -> None:
    """Draws what the trials of a search gave on the choosing rows: the metric against the divergence.

    Args:
        outcomes: all trials.
        front: those that no other beats in both.
        chosen: the one that was chosen.
        default: the trial of the default edit, if there was one.
        metric: what the figure is called.
        base: the base's figure.
        max_divergence: the damage budget.
        file: picture to write; its ending chooses the format (.png, .pdf, .svg).

    Raises:
        InputError: matplotlib is missing, or the file cannot be written.
    """
    check_picture(file)
    factor = 100 if base.unit == "%" else 1
    measured = [outcome for outcome in outcomes if outcome.value is not None]

    def points(some: Sequence[TrialResult]) -> tuple[list[float], list[float]]:
        return [one.divergence for one in some], [factor * one.value for one in some if one.value is not None]

    figure = new_figure(7.5, 5)
    axis = figure.subplots()
    axis.axvline(max_divergence, color=GREY, linestyle=":", label="damage budget")
    axis.axhline(factor * base.value, color=GREY, linewidth=0.8, alpha=0.5)
    axis.scatter(*points(measured), s=28, color="#999999", label="trial")
    axis.plot(*points(front), "-", color=BLUE, linewidth=1.5, marker="o", markersize=6, label="Pareto front")
    axis.scatter([0], [factor * base.value], s=130, marker="*", color="black", zorder=3, label="base")
    if default is not None and default.value is not None:
        look: dict[str, Any] = {"marker": "D", "color": ORANGE, "edgecolor": "black"}
        axis.scatter(*points([default]), s=70, zorder=3, label="default edit", **look)
    ring: dict[str, Any] = {"marker": "o", "facecolor": "none", "edgecolor": VERMILION, "linewidth": 2.2}
    axis.scatter(*points([chosen]), s=190, zorder=3, label="chosen", **ring)
    axis.set(
        xlabel="KL from the base on neutral text (nats per token)",
        ylabel=f"{metric} on the choosing rows" + (f" ({base.unit})" if base.unit else ""),
    )
    axis.set_xlim(left=-0.02 * max_divergence)
    figure.legend(loc="outside right upper", frameon=False)
    axis.grid(alpha=0.3)
    plain(axis)
    save_figure(figure, file)
