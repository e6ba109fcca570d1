"""The effect of an edit on demonstrations that took no part in its fit.

On each of them both completions are scored, before and after the edit. The margin is
log p(positive) / |positive| - log p(negative) / |negative|, with lengths in tokens. A demonstration counts as preferred
where the margin is above 0.
"""

from __future__ import annotations

from collections.abc import Sequence

from sea_export.capture.batching import PromptedCompletions
from sea_export.demonstrations.tokenize import TokenizedDemonstration
from sea_export.evaluation.metrics import Metric, mean_metric

__all__ = ["MARGIN", "held_out_items", "held_out_metrics"]

MARGIN = "mean margin per token"
"""Name of the metric that says whether an edit has an effect."""


def held_out_items(demonstrations: Sequence[TokenizedDemonstration]) -> list[PromptedCompletions]:
    """What is to be scored: each prompt with its positive and its negative completion."""
    return [PromptedCompletions(one.prompt, (one.positive, one.negative)) for one in demonstrations]


def held_out_metrics(
    demonstrations: Sequence[TokenizedDemonstration], scores: Sequence[Sequence[float]]
) -> tuple[Metric, ...]:
    """The metrics that follow from the scores.

    Args:
        demonstrations: those that were held out.
        scores: the log-likelihoods of both completions of each, in nats.

    Returns:
        The share of demonstrations whose positive completion is preferred per token, the share in which it is likelier
        in all, and the mean margin (`MARGIN`).
    """
    margins = [
        positive / len(one.positive) - negative / len(one.negative)
        for (positive, negative), one in zip(scores, demonstrations, strict=True)
    ]
    return (
        mean_metric("positive preferred per token", [float(margin > 0) for margin in margins]),
        mean_metric("positive preferred in all", [float(positive > negative) for positive, negative in scores]),
        mean_metric(MARGIN, margins, best=float("inf"), unit="nats"),
    )
