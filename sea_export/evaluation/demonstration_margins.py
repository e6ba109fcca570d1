"""Demonstrations as a benchmark: how much likelier a model finds the positive completion than the negative one.

The margin of a demonstration is log p(positive) / |positive| - log p(negative) / |negative|, with lengths in tokens.
The positive completion counts as preferred where the margin is above 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sea_export.capture.batching import PromptedCompletions
from sea_export.demonstrations.demonstration import Demonstration
from sea_export.demonstrations.tokenize import tokenize
from sea_export.evaluation.benchmark_names import HELD_OUT
from sea_export.evaluation.metrics import Metric, mean_metric

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["HELD_OUT", "MARGIN", "DemonstrationMargins"]

MARGIN = "mean margin per token"
"""Its main metric, which says whether an edit has an effect."""
_PREFERRED, _LIKELIER = "positive preferred per token", "positive preferred in all"


@dataclass(frozen=True)
class DemonstrationMargins:
    """Demonstrations that no fit has seen."""

    rows: tuple[Demonstration, ...]
    template: str
    """How prompts become text: see `sea_export.demonstrations.tokenize.tokenize`."""
    context_length: int | None = None
    """That of the model; None for no limit."""

    @property
    def label(self) -> str:
        """Its name in reports."""
        return HELD_OUT

    @property
    def metric_names(self) -> tuple[str, ...]:
        """Names of the metrics."""
        return MARGIN, _PREFERRED, _LIKELIER

    def items(self, tokenizer: PreTrainedTokenizerBase) -> list[PromptedCompletions]:
        """Each prompt with its positive and its negative completion.

        Raises:
            InputError: see `sea_export.demonstrations.tokenize.tokenize`.
        """
        tokenized = tokenize(self.rows, tokenizer, template=self.template, context_length=self.context_length)
        return [PromptedCompletions(one.prompt, (one.positive, one.negative)) for one in tokenized]

    def metrics(self, items: Sequence[PromptedCompletions], scores: Sequence[Sequence[float]]) -> tuple[Metric, ...]:
        """The mean margin, the share of positive margins, and the share in which the positive completion is likelier.

        Args:
            items: from `items`.
            scores: the log-likelihoods of both completions of each item, in nats.
        """
        margins = [
            positive / len(item.completions[0]) - negative / len(item.completions[1])
            for (positive, negative), item in zip(scores, items, strict=True)
        ]
        return (
            mean_metric(MARGIN, margins, best=float("inf"), unit="nats"),
            mean_metric(_PREFERRED, [float(margin > 0) for margin in margins]),
            mean_metric(_LIKELIER, [float(positive > negative) for positive, negative in scores]),
        )
