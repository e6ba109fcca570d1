"""A picture of an evaluation: differences to the base, paired by row, or the metrics where there is no base."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sea_export.evaluation.drawing import BLUE, INK, VERMILION, picture, plain, shown_label
from sea_export.evaluation.report import BenchmarkReport, MetricReport
from sea_export.evaluation.statistics import Interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_reports"]

# verdict -> how a difference is drawn, and what the legend says
_LOOKS = {
    "better": ("^", BLUE, "better"),
    "worse": ("v", VERMILION, "worse"),
    "no measurable gain": ("o", INK, "no measurable difference"),
    "": ("s", INK, "neither better nor worse"),
}
_VALUE = ("s", BLUE, "this model")
# With more, numbers of four digits touch each other.
_MOST_TICKS = 7


def plot_reports(reports: Sequence[BenchmarkReport], file: Path) -> None:
    """Draws the metrics of an evaluation over all rows, with 95 % intervals.

    Of a metric that the base has too, the difference is drawn, paired by row, and both values are told beside it.

    Args:
        reports: one for each benchmark.
        file: the picture to write. Its ending decides the format (.png, .pdf, .svg).

    Raises:
        InputError: matplotlib is missing, or the file cannot be written.
    """
    panels = [panel for report in reports for panel in _panels(report)]
    heights = [0.42 * len(metrics) + 0.9 for _, metrics in panels]
    with picture(file, sum(heights) + 0.6) as figure:
        axes = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)[:, 0]
        for axis, (report, metrics) in zip(axes, panels, strict=True):
            _draw(axis, metrics)
            axis.set_title(shown_label(f"{report.benchmark} ({report.rows} rows)"), loc="left")
        known = {name: handle for axis in axes for handle, name in zip(*axis.get_legend_handles_labels(), strict=True)}
        figure.legend(known.values(), known.keys(), loc="outside lower center", ncols=2)


def _panels(report: BenchmarkReport) -> list[tuple[BenchmarkReport, list[MetricReport]]]:
    """The metrics that share an axis: of one unit, and all compared with a base or none of them."""
    groups: dict[tuple[str, bool], list[MetricReport]] = {}
    for metric in report.metrics:
        if not metric.group:
            groups.setdefault((metric.unit, metric.difference is not None), []).append(metric)
    return [(report, metrics) for metrics in groups.values()]


def _draw(axis: Axes, metrics: Sequence[MetricReport]) -> None:
    unit, compared = metrics[0].unit, metrics[0].difference is not None
    factor = 100 if unit == "%" else 1
    for row, metric in enumerate(metrics):
        interval = metric.value if metric.difference is None else metric.difference
        marker, color, name = _VALUE if metric.difference is None else _LOOKS[metric.verdict]
        _draw_interval(axis, row, interval, factor, marker, color, name)
        axis.annotate(_values(metric, factor), (1.01, row), xycoords=("axes fraction", "data"), va="center")
    axis.set_yticks(range(len(metrics)), [_name(metric) for metric in metrics])
    axis.set_ylim(len(metrics) - 0.5, -0.5)
    shown = unit or "perplexity"
    if compared:
        axis.axvline(0, color=INK, linewidth=1)
        shown = f"difference to the base ({'points' if unit == '%' else shown})"
    axis.set_xlabel(shown_label(f"{shown}, 95 % intervals"))
    axis.grid(axis="x")
    axis.locator_params(axis="x", nbins=_MOST_TICKS)
    plain(axis)


def _draw_interval(
    axis: Axes, row: int, interval: Interval, factor: float, marker: str, color: str, label: str
) -> None:
    mean, low, high = (factor * end for end in interval)
    errors = [[max(mean - low, 0)], [max(high - mean, 0)]]
    axis.errorbar([mean], [row], xerr=errors, fmt=marker, color=color, capsize=3, label=label)


def _name(metric: MetricReport) -> str:
    better = f"\n({metric.aim} is better)" if metric.aim and metric.difference is not None else ""
    return shown_label(metric.name) + better


def _values(metric: MetricReport, factor: float) -> str:
    """The values of base and model, or of the model alone."""
    digits = 1 if metric.unit == "%" else 3
    own = f"{factor * metric.value.mean:.{digits}f}"
    return own if metric.base is None else f"{factor * metric.base.mean:.{digits}f} → {own}"
