"""What every benchmark of completions has in common, and how one is measured: by the one scorer."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from sea_export.capture.batching import PromptedCompletions
from sea_export.errors import InputError
from sea_export.evaluation.metrics import Metric
from sea_export.evaluation.scoring import completion_log_likelihoods

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = [
    "Benchmark",
    "Measurement",
    "Progress",
    "measure",
    "no_progress",
    "sample",
    "split",
    "split_rows",
    "with_rows",
]


Progress = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]
"""Given what is measured and in how many items: a context whose value is told how many of them are done."""


def no_progress(description: str, total: int) -> AbstractContextManager[Callable[[int], None]]:
    """A `Progress` that tells nobody."""
    return nullcontext(lambda count: None)


class Benchmark(Protocol):
    """A frozen dataclass with rows, which knows what is scored and what that means."""

    @property
    def label(self) -> str:
        """What reports call it."""

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the figures over all rows; a search makes the first better unless it is told another."""

    @property
    def rows(self) -> tuple[Any, ...]:
        """The questions, in order."""

    def items(self, tokenizer: PreTrainedTokenizerBase) -> list[PromptedCompletions]:
        """What is to be scored, row after row."""

    def figures(self, items: Sequence[PromptedCompletions], scores: Sequence[Sequence[float]]) -> tuple[Metric, ...]:
        """The figures, from the log-likelihoods of all items."""


BenchmarkT = TypeVar("BenchmarkT", bound=Benchmark)
T = TypeVar("T")


@dataclass(frozen=True)
class Measurement:
    """The figures that a benchmark gave for one model."""

    benchmark: str
    count: int
    """Number of rows."""
    figures: tuple[Metric, ...]

    def figure(self, name: str) -> Metric:
        """The figure of that name over all rows. Raises InputError where there is none."""
        overall = {figure.name: figure for figure in self.figures if not figure.group}
        if name in overall:
            return overall[name]
        names = ", ".join(overall)
        raise InputError(f"{self.benchmark} gives no figure {name!r}; it gives {names}")


def measure(
    benchmark: Benchmark,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    batch_tokens: int = 2048,
    progress: Progress = no_progress,
) -> Measurement:
    """Scores a benchmark's rows.

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
    return Measurement(benchmark.label, len(benchmark.rows), benchmark.figures(items, scores))


def sample(benchmark: BenchmarkT, count: int, seed: int) -> BenchmarkT:
    """The benchmark with a random sample of `count` of its rows, in their order, or with all if there are fewer."""
    if count >= len(benchmark.rows):
        return benchmark
    chosen = random.Random(seed).sample(range(len(benchmark.rows)), count)
    return with_rows(benchmark, [benchmark.rows[index] for index in sorted(chosen)])


def split(benchmark: BenchmarkT, share: float, seed: int) -> tuple[BenchmarkT, BenchmarkT]:
    """The benchmark in two disjoint random parts, the first with a share of the rows.

    Args:
        benchmark: the benchmark.
        share: of the rows, in (0, 1).
        seed: seed of the draw.

    Raises:
        InputError: it has too few rows to leave two on either side.
    """
    first, second = split_rows(benchmark.rows, share, seed, benchmark.label)
    return with_rows(benchmark, first), with_rows(benchmark, second)


def split_rows(rows: Sequence[T], share: float, seed: int, label: str) -> tuple[tuple[T, ...], tuple[T, ...]]:
    """`split` for rows without a benchmark, which messages call `label`."""
    count = round(share * len(rows))
    if not 2 <= count <= len(rows) - 2:
        raise InputError(f"{label} has {len(rows)} rows: too few to keep some for choosing and others for reporting")
    shuffled = list(rows)
    random.Random(seed).shuffle(shuffled)
    return tuple(shuffled[:count]), tuple(shuffled[count:])


def with_rows(benchmark: BenchmarkT, rows: Sequence[Any]) -> BenchmarkT:
    """The same benchmark with other rows."""
    changed: BenchmarkT = replace(benchmark, rows=tuple(rows))  # type: ignore[type-var]
    return changed
