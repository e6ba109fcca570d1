"""What `tune` prints and writes: trials, the Pareto front, and base, default and chosen edit side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from sea_export.cli.json_output import result_text
from sea_export.cli.terminal import console, plain_table
from sea_export.evaluation.divergence import DIVERGENCE
from sea_export.evaluation.metrics import Metric
from sea_export.evaluation.report import BenchmarkReport
from sea_export.files.writing import write_result
from sea_export.options import GRADIENT_METHODS
from sea_export.text import interval_text
from sea_export.tuning.trial import TrialResult
from sea_export.tuning.tune import Tuning
from sea_export.tuning.tuning_options import TuneOptions
from sea_export.tuning.tuning_rows import TuningRows

__all__ = ["print_trial", "print_tuning", "write_tuning"]


def print_trial(result: TrialResult, base: Metric) -> None:
    """Prints the line of a trial."""
    shown = f"cut short: {result.cut}"
    if result.value is not None:
        shown = f"{base.name} {_shown(result.value, base.unit)} (base {_shown(base.value, base.unit)})"
    if result.divergence is not None:
        shown += f", KL {result.divergence:.4f}"
    line = f"Trial {result.number}: {shown}: {_described(result)}"
    console.print(line, soft_wrap=True)


def print_tuning(tuning: Tuning, rows: TuningRows) -> None:
    """Prints the Pareto front, and what the default and the chosen edit give on both parts of the rows."""
    _print_front(tuning)
    for part in rows.parts:
        _print_reports(part.name, len(part.benchmark.rows), tuning.reports[part.name], rows.metric)


def write_tuning(tuning: Tuning, options: TuneOptions, record: Path | None) -> None:
    """Writes the picture of a search, if it is asked for, and its record.

    Args:
        tuning: the search.
        options: they name the picture.
        record: the file of the record; None for none.
    """
    if options.plot is not None:
        tuning.plot(options.plot)
        console.print(f"Saved the picture to {options.plot}.")
    if record is not None:
        write_result(record, result_text("tune", tuning))
        console.print(f"Wrote settings and metrics to {record}.")


def _described(result: TrialResult) -> str:
    """The searched settings in one line."""
    options = result.candidate.options
    edit = options.edit
    parts = [options.method, options.layers, options.target]
    if options.method in GRADIENT_METHODS:
        parts.append(f"{options.form} {options.rank}" if options.form == "low-rank" else options.form)
    else:
        parts.append(f"site {options.capture.site}")
    if options.damping is not None:
        parts.append(f"damping {options.damping:g}")
    if options.center != "off":
        parts.append(options.center)
    if options.method == "spectral":
        parts.append(f"{edit.variance('positive'):.5g} / {edit.variance('negative'):.5g}")
        parts.append(edit.normalization)
    if result.strength is not None:
        parts.append(f"strength {result.strength:.4g}")
    return ", ".join(parts)


def _print_front(tuning: Tuning) -> None:
    base, front, chosen = tuning.base, tuning.front, tuning.chosen
    table = plain_table(
        *("trial", tuning.settings.metric, "KL (nats)", "method and settings"),
        title="Pareto front on the choosing rows, within the budget",
    )
    table.add_row("base", _shown(base.value, base.unit), "0", "")
    for result in front if chosen in front else (*front, chosen):
        assert result.value is not None
        assert result.divergence is not None
        number = f"{result.number} (chosen)" if result == chosen else str(result.number)
        row = (_shown(result.value, base.unit), f"{result.divergence:.4f}", _described(result))
        table.add_row(number, *row)
    console.print(table)


def _print_reports(part: str, count: int, reports: Mapping[str, Sequence[BenchmarkReport]], name: str) -> None:
    """Prints the metric of that name, and the damage, of base, default and chosen edit on a part of the rows."""
    table = plain_table(
        *("", name, "difference to base", "p", "KL from the base (nats)", "perplexity"),
        title=f"{count} {part} rows, 95 % intervals",
    )
    for edit, (benchmark, damage) in reports.items():
        metric, perplexity = benchmark.metric(name), damage.metric("perplexity")
        if not table.row_count:
            base = interval_text(metric.base, metric.unit), interval_text(perplexity.base, perplexity.unit)
            table.add_row("base", base[0], "", "", "", base[1])
        table.add_row(
            edit,
            interval_text(metric.value, metric.unit),
            interval_text(metric.difference, metric.unit, signed=True),
            f"{metric.p_value:.2g}",
            interval_text(damage.metric(DIVERGENCE).value, "nats"),
            interval_text(perplexity.value, perplexity.unit),
        )
    console.print(table)


def _shown(value: float, unit: str) -> str:
    return f"{100 * value:.1f}" if unit == "%" else f"{value:.3f}"
