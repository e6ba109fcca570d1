"""One trial of a search: an edit with some settings, measured on the choosing rows.

All trials start from the base's hidden states below the first edited layer, and are compared with predictions of the
base that are kept. A trial ends as soon as it is hopeless.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from sea_export.edit.spectral_edit import SpectralEdit
from sea_export.evaluation.benchmark import Benchmark, Measurement, with_rows
from sea_export.evaluation.divergence import RepeatedDivergence, joined, joined_metric
from sea_export.evaluation.metrics import Metric
from sea_export.evaluation.repeated_scoring import RepeatedScorer
from sea_export.evaluation.statistics import metric_differences
from sea_export.evaluation.unrelated_text import unrelated_text
from sea_export.fitting.bank import StatisticsBank
from sea_export.options import FitOptions

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["TrialResult", "Tuner", "surely_worse"]

T = TypeVar("T")

# A trial is cut short if its divergence is so many times the budget. The search would learn little from the rest.
_FAR_OVER_BUDGET = 1.5
# A hopeless trial is given up after this share of the choosing rows, and of the texts.
_FIRST_PART = 0.3
# The interval of fewer rows is never a reason to give up a trial.
_FEWEST_ROWS = 20
# Hidden states of the base are kept before about so many layers, evenly spaced.
_STARTS = 8


@dataclass(frozen=True)
class TrialResult:
    """What a trial gave on the choosing rows.

    Attributes:
        number: the number of the trial in its study.
        options: the settings of the edit.
        value: the metric; None for a trial that was cut short.
        score: how good the value is: see `sea_export.evaluation.metrics.Metric.score`.
        divergence: mean KL from the base in nats per token. For a trial that was cut short: on the first texts.
        cut: why the trial was cut short; None if it was not.
    """

    number: int
    options: FitOptions
    value: float | None
    score: float | None
    divergence: float
    cut: str | None


class Tuner:
    """Measures edits of one model on the choosing rows."""

    def __init__(
        self,
        bank: StatisticsBank,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        benchmark: Benchmark,
        texts: Sequence[str],
        questions: Sequence[str],
        *,
        metric: str,
        max_divergence: float,
        scratch: Path,
        batch_tokens: int = 2048,
    ) -> None:
        """Measures the base.

        Args:
            bank: makes the edits.
            model: the base. Edits are applied to it and removed again.
            tokenizer: its tokenizer.
            benchmark: the choosing rows.
            texts: neutral passages, at least two.
            questions: what the base answers for its damage, at least two.
            metric: the name of the metric that is to be improved.
            max_divergence: the damage budget: mean KL from the base, in nats per token.
            scratch: a directory for hidden states and predictions of the base, in files without a name.
            batch_tokens: about how many tokens a forward pass computes.

        Raises:
            InputError: the benchmark has no such metric.
            SeaExportError: there is no room in the directory.
        """
        self.bank, self.metric, self.max_divergence = bank, metric, max_divergence
        starts = range(0, bank.layer_count, max(1, bank.layer_count // _STARTS))
        self._parts = [with_rows(benchmark, rows) for rows in _two_parts(benchmark.rows)]
        self._scorers = [
            RepeatedScorer(model, part.items(tokenizer), starts, batch_tokens=batch_tokens, directory=scratch)
            for part in self._parts
        ]
        self._divergences = [
            RepeatedDivergence(
                model, unrelated_text(model, tokenizer, own_texts, own_questions), starts, directory=scratch
            )
            for own_texts, own_questions in zip(_two_parts(texts), _two_parts(questions), strict=True)
        ]
        self._base = [self._measured(part) for part in range(len(self._parts))]
        self.base = joined_metric(self._base)

    def try_edit(self, number: int, options: FitOptions, *, whole: bool = False) -> TrialResult:
        """Measures one edit, and begins with the cheap part.

        Args:
            number: the number of the trial.
            options: its settings.
            whole: whether it is measured to the end, even if it is hopeless.
        """
        edit = self.bank.edit(options)
        limit = math.inf if whole else _FAR_OVER_BUDGET * self.max_divergence
        first = self._divergences[0].of(edit, limit=limit)
        divergence = first.largest
        if divergence.value > limit:
            return TrialResult(number, options, None, None, divergence.value, "over budget on the first texts")
        divergence = joined([first, self._divergences[1].of(edit)]).largest
        if divergence.value > limit:
            return TrialResult(number, options, None, None, divergence.value, "over budget")
        metric = self._measured(0, edit)
        if not whole and surely_worse(metric, self._base[0]):
            return TrialResult(number, options, None, None, divergence.value, "worse than the base on the first rows")
        metric = joined_metric([metric, self._measured(1, edit)])
        return TrialResult(number, options, metric.value, metric.score, divergence.value, None)

    def _measured(self, part: int, edit: SpectralEdit | None = None) -> Metric:
        benchmark, scorer = self._parts[part], self._scorers[part]
        metrics = benchmark.metrics(scorer.items, scorer.log_likelihoods(edit))
        return Measurement(benchmark.label, len(benchmark.rows), metrics).metric(self.metric)


def _two_parts(rows: Sequence[T]) -> tuple[Sequence[T], Sequence[T]]:
    """The first rows, with which a trial begins, and the others."""
    first = max(1, round(_FIRST_PART * len(rows)))
    return rows[:first], rows[first:]


def surely_worse(metric: Metric, base: Metric) -> bool:
    """Whether the whole 99 % interval of the difference is on the wrong side of the base. Never with few rows."""
    if len(metric.rows) < _FEWEST_ROWS:
        return False
    (difference,) = metric_differences([metric], [base], confidence=0.99, samples=2000)
    return difference.high < 0 if base.best > base.value else difference.low > 0
