"""What `tune` prints and writes: trials, the Pareto front, and base, default and chosen edit side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rich.table import Table

from sea_export.cli.terminal import console
from sea_export.evaluation.damage import DIVERGENCE
from sea_export.evaluation.metrics import Metric
from sea_export.evaluation.report import BenchmarkReport
from sea_export.options import FitOptions
from sea_export.text import interval_text
from sea_export.tuning.search import TrialResult

__all__ = ["describe", "print_front", "print_outcome", "print_reports", "tuning_record"]


def describe(options: FitOptions) -> str:
    """The searched settings in one line."""
    edit = options.edit
    parts = [
        options.layers,
        options.target,
        f"site {options.capture.site}",
        options.center,
        f"{edit.variance('positive'):.5g} / {edit.variance('negative'):.5g}",
        edit.normalization,
        f"strength {edit.strength:g}",
    ]
    return ", ".join(parts)


def print_outcome(outcome: TrialResult, metric: str, base: Metric) -> None:
    """Prints one line a trial."""
    result = f"cut short: {outcome.cut}"
    if outcome.value is not None:
        result = f"{metric} {_shown(outcome.value, base.unit)} (base {_shown(base.value, base.unit)})"
    line = f"Trial {outcome.number}: {result}, KL {outcome.divergence:.4f}: {describe(outcome.options)}"
    console.print(line, soft_wrap=True)


def print_front(front: Sequence[TrialResult], chosen: TrialResult, metric: str, base: Metric) -> None:
    """Prints the base and the trials that no other beats in both score and divergence."""
    table = Table(
        *("trial", metric, "KL (nats)", "layers, target, site, centring, variance + / -, normalization, strength"),
        title="Pareto front on the choosing rows, within the budget",
        title_justify="left",
    )
    table.add_row("base", _shown(base.value, base.unit), "0", "")
    for outcome in front if chosen in front else (*front, chosen):
        assert outcome.value is not None
        number = f"{outcome.number} (chosen)" if outcome == chosen else str(outcome.number)
        row = (_shown(outcome.value, base.unit), f"{outcome.divergence:.4f}", describe(outcome.options))
        table.add_row(number, *row)
    console.print(table)


def print_reports(part: str, count: int, reports: Mapping[str, Sequence[BenchmarkReport]], metric: str) -> None:
    """Prints base, default and chosen edit on a part of the rows."""
    table = Table(
        *("", metric, "less the base", "p", "KL from the base (nats)", "perplexity"),
        title=f"{count} {part} rows, 95 % intervals",
        title_justify="left",
    )
    for name, (benchmark, damage) in reports.items():
        figure, perplexity = benchmark.figure(metric), damage.figure("perplexity")
        if not table.row_count:
            base = interval_text(figure.base, figure.unit), interval_text(perplexity.base, perplexity.unit)
            table.add_row("base", base[0], "", "", "", base[1])
        table.add_row(
            name,
            interval_text(figure.value, figure.unit),
            interval_text(figure.difference, figure.unit, signed=True),
            f"{figure.p_value:.2g}",
            interval_text(damage.figure(DIVERGENCE).value, "nats"),
            interval_text(perplexity.value, perplexity.unit),
        )
    console.print(table)


def tuning_record(
    settings: Mapping[str, Any],
    outcomes: Sequence[TrialResult],
    front: Sequence[TrialResult],
    chosen: TrialResult,
    base: Metric,
    reports: Mapping[str, Mapping[str, Sequence[BenchmarkReport]]],
) -> dict[str, Any]:
    """Everything about a search, as plain JSON data."""
    return {
        "settings": dict(settings),
        "base_value": base.value,
        "trials": [asdict(outcome) for outcome in outcomes],
        "front": [outcome.number for outcome in front],
        "chosen": chosen.number,
        "reports": {
            part: {name: [asdict(report) for report in found] for name, found in edits.items()}
            for part, edits in reports.items()
        },
    }


def _shown(value: float, unit: str) -> str:
    return f"{100 * value:.1f}" if unit == "%" else f"{value:.3f}"
