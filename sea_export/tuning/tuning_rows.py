"""The rows and texts of a search, in two parts: settings are chosen on one part, and reported on the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sea_export.demonstrations.demonstration import Demonstration
from sea_export.demonstrations.neutral_text import load_texts, ordinary_questions
from sea_export.errors import InputError
from sea_export.evaluation.benchmark import Benchmark, split, split_rows
from sea_export.evaluation.demonstration_margins import DemonstrationMargins
from sea_export.evaluation.suite import load_benchmark
from sea_export.tuning.tuning_options import TuneOptions

__all__ = ["CHOOSING", "REPORTING", "Part", "TuningRows"]

CHOOSING, REPORTING = "choosing", "reporting"


@dataclass(frozen=True)
class Part:
    """Rows and texts that are used together: for choosing, or for reporting."""

    name: str
    benchmark: Benchmark
    texts: tuple[str, ...]
    questions: tuple[str, ...]


@dataclass(frozen=True)
class TuningRows:
    """The rows and texts of a search, in two parts, and the metric that is to be improved."""

    choosing: Part
    reporting: Part
    metric: str

    @classmethod
    def load(cls, options: TuneOptions, held_out: Sequence[Demonstration]) -> TuningRows:
        """Reads the rows and texts, and splits them.

        Args:
            options: those of the search.
            held_out: the demonstrations that are held out, which are the rows if there is no benchmark.

        Raises:
            InputError: they cannot be read, are too few, or do not give the metric.
        """
        if options.benchmark is None and not held_out:
            raise InputError(
                "--held-out: too few demonstrations can be held out to measure anything. Give more demonstrations, or "
                "--benchmark."
            )
        benchmark: Benchmark = (
            load_benchmark(options.benchmark)
            if options.benchmark is not None
            else DemonstrationMargins(tuple(held_out), options.template)
        )
        metric = options.metric or benchmark.metric_names[0]
        if metric not in benchmark.metric_names:
            names = ", ".join(benchmark.metric_names)
            raise InputError(f"--metric: {benchmark.label} has no metric {metric!r}. Choose one of {names}.")
        rows = split(benchmark, options.choosing, options.seed)
        texts = split_rows(load_texts(options.text), 0.5, options.seed, "--text")
        questions = split_rows(ordinary_questions(), 0.5, options.seed, "questions")
        choosing, reporting = (
            Part(name, rows[index], texts[index], questions[index]) for index, name in enumerate((CHOOSING, REPORTING))
        )
        return cls(choosing, reporting, metric)

    @property
    def parts(self) -> tuple[Part, Part]:
        """Both parts."""
        return self.choosing, self.reporting
