"""A picture of a search: score against damage."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from sea_export.evaluation.drawing import BLUE, GREEN, INK, ORANGE, VERMILION, picture, plain, shown_label

if TYPE_CHECKING:
    from sea_export.evaluation.metrics import Metric
    from sea_export.tuning.study import SearchSettings
    from sea_export.tuning.trial import TrialResult

__all__ = ["DrawnSearch", "plot_search"]


class DrawnSearch(Protocol):
    """What is drawn of a search: see `sea_export.tuning.tune.Tuning`."""

    @property
    def settings(self) -> SearchSettings: ...

    @property
    def base(self) -> Metric: ...

    @property
    def trials(self) -> Sequence[TrialResult]: ...

    @property
    def front(self) -> Sequence[TrialResult]: ...

    @property
    def chosen(self) -> TrialResult: ...

    @property
    def default(self) -> TrialResult | None: ...


def plot_search(tuning: DrawnSearch, file: Path) -> None:
    """Draws what the trials of a search gave on the choosing rows: the metric against the divergence.

    Args:
        tuning: the search.
        file: the picture to write. Its ending decides the format (.png, .pdf, .svg).

    Raises:
        InputError: matplotlib is missing, or the file cannot be written.
    """
    base, budget = tuning.base, tuning.settings.space.max_kl
    factor = 100 if base.unit == "%" else 1

    def points(some: Sequence[TrialResult]) -> tuple[list[float], list[float]]:
        shown = [
            (one.divergence, factor * one.value) for one in some if one.divergence is not None and one.value is not None
        ]
        return [divergence for divergence, _ in shown], [value for _, value in shown]

    unit = f" ({base.unit})" if base.unit else ""
    measured = [result for result in tuning.trials if result.value is not None]
    with picture(file, 4.6) as figure:
        axis = figure.subplots()
        axis.axvline(budget, color=INK, linestyle=":", label="damage budget")
        axis.axhline(factor * base.value, color=INK, linewidth=0.8, alpha=0.5)
        axis.scatter(*points(measured), s=28, color=INK, label="trial")
        axis.plot(*points(tuning.front), "-", color=BLUE, linewidth=1.5, marker="o", markersize=6, label="Pareto front")
        axis.scatter([0], [factor * base.value], s=130, marker="*", color=GREEN, zorder=3, label="base")
        if tuning.default is not None and tuning.default.value is not None:
            look: dict[str, Any] = {"marker": "D", "color": ORANGE, "edgecolor": INK}
            axis.scatter(*points([tuning.default]), s=70, zorder=3, label="default edit", **look)
        ring: dict[str, Any] = {"marker": "o", "facecolor": "none", "edgecolor": VERMILION, "linewidth": 2.2}
        axis.scatter(*points([tuning.chosen]), s=190, zorder=3, label="chosen", **ring)
        axis.set(
            xlabel="KL from the base on neutral text (nats per token)",
            ylabel=shown_label(f"{tuning.settings.metric} on the choosing rows{unit}"),
        )
        axis.set_xlim(left=-0.02 * budget)
        figure.legend(loc="outside lower center", ncols=3, labelspacing=0.9)
        axis.grid()
        plain(axis)
