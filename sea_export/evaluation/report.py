"""Reports of measurements: with intervals, and compared with a base, with differences and tests."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sea_export.evaluation.benchmark import GivenAnswer, Measurement
from sea_export.evaluation.metrics import Metric
from sea_export.evaluation.statistics import Interval, metric_differences, metric_intervals, permutation_tests

__all__ = ["BenchmarkReport", "MetricReport", "aim_of", "make_reports", "verdict_of"]

_NEUTRAL_UNIT = "tokens"


def aim_of(unit: str, best: float | None, values: Sequence[float]) -> str:
    """Which values of a metric are better.

    Args:
        unit: see `sea_export.evaluation.metrics.Metric`.
        best: the same; None, or infinity, where more is always better.
        values: those that are shown. A metric on one side of its best value is better the lower, or the higher, it is.

    Returns:
        `higher`, `lower`, `nearer` some value, or nothing for a number of tokens, which is neither.
    """
    if unit == _NEUTRAL_UNIT:
        return ""
    if best is None or math.isinf(best) or all(value <= best for value in values):
        return "higher"
    if all(value >= best for value in values):
        return "lower"
    return f"nearer {100 * best if unit == '%' else best:g}"


def verdict_of(
    unit: str,
    best: float | None,
    value: Sequence[float],
    base: Sequence[float] | None,
    difference: Sequence[float] | None,
) -> str:
    """Whether a metric is better than that of a base.

    Args:
        unit: see `aim_of`.
        best: see `aim_of`.
        value: mean and interval of the model.
        base: the same of the base; None if there is none.
        difference: mean and interval of the paired difference; None if there is no base.

    Returns:
        `better` or `worse`, where the interval of the difference does not hold 0; else `no measurable gain`.
    """
    if base is None or difference is None or unit == _NEUTRAL_UNIT:
        return ""
    _, low, high = difference
    if not (low > 0 or high < 0):
        return "no measurable gain"
    rises = value[0] > base[0] if best is None or math.isinf(best) else abs(value[0] - best) < abs(base[0] - best)
    return "better" if rises else "worse"


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
        return verdict_of(self.unit, self.best, self.value, self.base, self.difference)


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
