"""What all benchmarks of completions have in common, and how one is measured: with the one scorer."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from sea_export.capture.batching import PromptedCompletions
from sea_export.capture.progress_callback import Progress, no_progress
from sea_export.errors import InputError
from sea_export.evaluation.metrics import Metric
from sea_export.evaluation.scoring import completion_log_likelihoods

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = [
    "Benchmark",
    "GivenAnswer",
    "Measurement",
    "Progress",
    "measure",
    "named_progress",
    "no_progress",
    "sample",
    "sample_rows",
    "split",
    "split_rows",
    "with_rows",
]


def named_progress(progress: Progress, name: str) -> Progress:
    """A `Progress` that puts the name of a model before every description."""
    return lambda description, total: progress(f"{name}: {description}", total)


class Benchmark(Protocol):
    """A frozen dataclass with rows, which says what is scored and which metrics follow from the scores."""

    @property
    def label(self) -> str:
        """Its name in reports."""

    @property
    def metric_names(self) -> tuple[str, ...]:
        """Names of the metrics over all rows. A search improves the first one by default."""

    @property
    def rows(self) -> tuple[Any, ...]:
        """The questions, in order."""

    def items(self, tokenizer: PreTrainedTokenizerBase) -> list[PromptedCompletions]:
        """What is to be scored, row by row."""

    def metrics(self, items: Sequence[PromptedCompletions], scores: Sequence[Sequence[float]]) -> tuple[Metric, ...]:
        """The metrics that follow from the log-likelihoods of all items."""


BenchmarkT = TypeVar("BenchmarkT", bound=Benchmark)
T = TypeVar("T")


@dataclass(frozen=True)
class GivenAnswer:
    """A prompt, and what a model answered."""

    prompt: str
    text: str
    correct: tuple[str, ...] = ()
    """Reference answers that are true, for a judge."""
    incorrect: tuple[str, ...] = ()
    """Reference answers that are false."""
    truthful: bool | None = None
    """What a judge said; None if there is no verdict."""
    informative: bool | None = None


@dataclass(frozen=True)
class Measurement:
    """The metrics of one model on a benchmark."""

    benchmark: str
    count: int
    """Number of rows."""
    metrics: tuple[Metric, ...]
    answers: tuple[GivenAnswer, ...] = ()
    """What the model answered to each row; empty if it was not asked for text."""

    def metric(self, name: str) -> Metric:
        """The metric of that name over all rows.

        Raises:
            InputError: the benchmark has no such metric.
        """
        overall = {metric.name: metric for metric in self.metrics if not metric.group}
        if name in overall:
            return overall[name]
        raise InputError(f"{self.benchmark}: it has no metric {name!r}. Choose one of {', '.join(overall)}.")


def measure(
    benchmark: Benchmark,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    batch_tokens: int = 2048,
    progress: Progress = no_progress,
) -> Measurement:
    """Scores the rows of a benchmark.

    Args:
        benchmark: the benchmark.
        model: a causal language model.
        tokenizer: its tokenizer.
        batch_tokens: about how many tokens a forward pass computes.
        progress: see `Progress`.
    """
    items = benchmark.items(tokenizer)
    with progress(benchmark.label, len(items)) as advance:
        scores = completion_log_likelihoods(model, items, batch_tokens=batch_tokens, progress=advance)
    return Measurement(benchmark.label, len(benchmark.rows), benchmark.metrics(items, scores))


def sample(benchmark: BenchmarkT, count: int, seed: int) -> BenchmarkT:
    """The benchmark with a random sample of `count` of its rows, in their order; with all rows if there are no more."""
    return with_rows(benchmark, sample_rows(benchmark.rows, count, seed))


def sample_rows(rows: Sequence[T], count: int, seed: int) -> tuple[T, ...]:
    """`sample` for rows without a benchmark."""
    if count >= len(rows):
        return tuple(rows)
    chosen = random.Random(seed).sample(range(len(rows)), count)
    return tuple(rows[index] for index in sorted(chosen))


def split(benchmark: BenchmarkT, share: float, seed: int) -> tuple[BenchmarkT, BenchmarkT]:
    """The benchmark in two disjoint random parts.

    Args:
        benchmark: the benchmark.
        share: the share of the rows in the first part, in (0, 1).
        seed: seed of the draw.

    Raises:
        InputError: there are too few rows to have two in each part.
    """
    first, second = split_rows(benchmark.rows, share, seed, benchmark.label)
    return with_rows(benchmark, first), with_rows(benchmark, second)


def split_rows(rows: Sequence[T], share: float, seed: int, label: str) -> tuple[tuple[T, ...], tuple[T, ...]]:
    """`split` for rows without a benchmark. Messages call them `label`."""
    count = round(share * len(rows))
    if not 2 <= count <= len(rows) - 2:
        raise InputError(
            f"{label}: it has {len(rows)} rows, too few to keep some for choosing and others for reporting. Give more "
            "rows, or another --choosing."
        )
    shuffled = list(rows)
    random.Random(seed).shuffle(shuffled)
    return tuple(shuffled[:count]), tuple(shuffled[count:])


def with_rows(benchmark: BenchmarkT, rows: Sequence[Any]) -> BenchmarkT:
    """The same benchmark with other rows."""
    changed: BenchmarkT = replace(benchmark, rows=tuple(rows))  # type: ignore[type-var]
    return changed
