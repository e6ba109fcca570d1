"""Measurements as they are told: with intervals, and against a base with differences and tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sea_export.evaluation.benchmark import Measurement
from sea_export.evaluation.metrics import Metric
from sea_export.evaluation.statistics import Interval, metric_differences, metric_intervals, permutation_tests

__all__ = ["BenchmarkReport", "MetricReport", "make_reports"]


@dataclass(frozen=True)
class MetricReport:
    """One figure of a model, and of its base where that has it. Intervals are of 95 %."""

    name: str
    group: str
    """Which rows it is about; nothing for all."""
    unit: str
    """See `sea_export.evaluation.metrics.Metric`."""
    best: float
    value: Interval
    base: Interval | None
    difference: Interval | None
    """`value` less `base`, paired by row."""
    p_value: float | None
    """Of the two models being alike."""

    @property
    def title(self) -> str:
        """Group and name."""
        return f"{self.group}: {self.name}" if self.group else self.name


@dataclass(frozen=True)
class BenchmarkReport:
    """What a benchmark gave."""

    benchmark: str
    rows: int
    figures: tuple[MetricReport, ...]

    def figure(self, name: str) -> MetricReport:
        """The figure of that name over all rows."""
        return next(figure for figure in self.figures if figure.title == name)


def make_reports(
    measurements: Sequence[Measurement], baseline: Sequence[Measurement] | None = None, *, seed: int = 0
) -> list[BenchmarkReport]:
    """Reports of one model's measurements.

    Args:
        measurements: the model's.
        baseline: the base's, of the same benchmarks in the same order; None if there is none.
        seed: seed of everything that is drawn.
    """
    bases: Sequence[Measurement | None] = [None] * len(measurements) if baseline is None else baseline
    return [_report(own, base, seed) for own, base in zip(measurements, bases, strict=True)]


def _report(own: Measurement, base: Measurement | None, seed: int) -> BenchmarkReport:
    known = {_key(figure): figure for figure in base.figures} if base is not None else {}
    shared = [figure for figure in own.figures if _key(figure) in known]
    partners = [known[_key(figure)] for figure in shared]
    compared = zip(
        metric_intervals(partners, seed=seed),
        metric_differences(shared, partners, seed=seed),
        permutation_tests(shared, partners, seed=seed),
        strict=True,
    )
    against = {_key(figure): one for figure, one in zip(shared, compared, strict=True)}
    figures = []
    for figure, value in zip(own.figures, metric_intervals(own.figures, seed=seed), strict=True):
        base_value, difference, p_value = against.get(_key(figure), (None, None, None))
        figures.append(
            MetricReport(figure.name, figure.group, figure.unit, figure.best, value, base_value, difference, p_value)
        )
    return BenchmarkReport(own.benchmark, own.count, tuple(figures))


def _key(figure: Metric) -> tuple[str, str]:
    return figure.group, figure.name
