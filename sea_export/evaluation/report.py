"""Reports of measurements: with intervals, and compared with a base, with differences and tests."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sea_export.evaluation.benchmark import GivenAnswer, Measurement
from sea_export.evaluation.metrics import Metric
from sea_export.evaluation.statistics import Interval, metric_differences, metric_intervals, permutation_tests
from sea_export.evaluation.verdicts import aim_of, verdict_of

__all__ = ["BenchmarkReport", "MetricReport", "make_reports"]


@dataclass(frozen=True)
class MetricReport:
    """One metric of a model, and of its base if that has it. Intervals are 95 % intervals."""

    name: str
    group: str
    """Which rows it is about; empty for all rows."""
    unit: str
    """See `sea_export.evaluation.metrics.Metric`."""
    best: float
    value: Interval
    base: Interval | None
    difference: Interval | None
    """`value` minus `base`, paired by row."""
    p_value: float | None
    """Of the hypothesis that the two models are alike."""

    @property
    def title(self) -> str:
        """Group and name."""
        return f"{self.group}: {self.name}" if self.group else self.name

    @property
    def aim(self) -> str:
        """Which values are better: `higher`, `lower`, or `nearer` some value; empty if none are."""
        return aim_of(self.unit, self.best, [*self.value, *(self.base or ())])

    @property
    def verdict(self) -> str:
        """Whether the model is better than its base; empty if there is none, or if no values are better."""
        return verdict_of(self.unit, self.best, self.value, self.base, self.difference, self.p_value)


@dataclass(frozen=True)
class BenchmarkReport:
    """The metrics of one benchmark."""

    benchmark: str
    rows: int
    metrics: tuple[MetricReport, ...]
    answers: tuple[GivenAnswer, ...] = ()
    """What the model answered to each row; empty if it was not asked for text."""
    base_answers: tuple[GivenAnswer, ...] = ()
    """The same of the base."""

    def metric(self, name: str) -> MetricReport:
        """The metric of that name over all rows."""
        return next(metric for metric in self.metrics if metric.title == name)

    def rows_of_metrics(self) -> list[dict[str, Any]]:
        """A row of a table for each metric: values, and the lower and the upper end of their intervals."""
        rows = []
        for metric in self.metrics:
            named = {"benchmark": self.benchmark, "rows": self.rows, "metric": metric.name, "group": metric.group}
            values = {"value": metric.value, "base": metric.base, "difference": metric.difference}
            ends = {
                f"{name}{end}": None if interval is None else interval[index]
                for name, interval in values.items()
                for index, end in enumerate(("", "_low", "_high"))
            }
            rows.append({**named, "unit": metric.unit, **ends, "p_value": metric.p_value, "verdict": metric.verdict})
        return rows

    def record(self) -> dict[str, Any]:
        """All of it as plain JSON data, under the names that manifests and `--json` files have for it."""
        figures = [
            {**asdict(metric), "best": metric.best if math.isfinite(metric.best) else None} for metric in self.metrics
        ]
        return {"benchmark": self.benchmark, "rows": self.rows, "figures": figures}

    def record_with_answers(self) -> dict[str, Any]:
        """`record` and the answers, which are too long for a manifest."""
        kept = {"answers": self.answers, "base_answers": self.base_answers}
        return {**self.record(), **{name: [asdict(one) for one in given] for name, given in kept.items() if given}}


def make_reports(
    measurements: Sequence[Measurement], baseline: Sequence[Measurement] | None = None, *, seed: int = 0
) -> list[BenchmarkReport]:
    """Reports of the measurements of one model.

    Args:
        measurements: those of the model.
        baseline: those of the base, of the same benchmarks in the same order; None if there is no base.
        seed: seed of all random draws.
    """
    bases: Sequence[Measurement | None] = [None] * len(measurements) if baseline is None else baseline
    return [_report(own, base, seed) for own, base in zip(measurements, bases, strict=True)]


def _report(own: Measurement, base: Measurement | None, seed: int) -> BenchmarkReport:
    known = {_key(metric): metric for metric in base.metrics} if base is not None else {}
    shared = [metric for metric in own.metrics if _key(metric) in known]
    partners = [known[_key(metric)] for metric in shared]
    compared = zip(
        metric_intervals(partners, seed=seed),
        metric_differences(shared, partners, seed=seed),
        permutation_tests(shared, partners, seed=seed),
        strict=True,
    )
    against = {_key(metric): one for metric, one in zip(shared, compared, strict=True)}
    metrics = []
    for metric, value in zip(own.metrics, metric_intervals(own.metrics, seed=seed), strict=True):
        base_value, difference, p_value = against.get(_key(metric), (None, None, None))
        metrics.append(
            MetricReport(metric.name, metric.group, metric.unit, metric.best, value, base_value, difference, p_value)
        )
    return BenchmarkReport(
        own.benchmark, own.count, tuple(metrics), own.answers, base.answers if base is not None else ()
    )


def _key(metric: Metric) -> tuple[str, str]:
    return metric.group, metric.name
