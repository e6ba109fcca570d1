"""How far the predictions of an edited model are from those of its base, on unrelated text.

The logits of the base are needed for every edit, and are too large to keep in memory. So each batch is run without an
edit, and then with each of the edits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from sea_export.capture.batching import PromptedCompletions, Segment
from sea_export.edit.spectral_edit import SpectralEdit
from sea_export.evaluation.metrics import Metric, mean_metric
from sea_export.evaluation.scoring import observe_completions
from sea_export.evaluation.unrelated_text import UnrelatedText

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = [
    "BATCH_TOKENS",
    "DIVERGENCE",
    "Divergence",
    "PredictionObserver",
    "compared",
    "divergence_of",
    "divergences",
    "joined",
    "joined_metric",
]

DIVERGENCE = "KL from the base"
"""Name of the metric that a budget bounds: the larger one of the KL on prose and the KL on own answers."""

BATCH_TOKENS = 512
"""The logits of all counted tokens of a pass are in memory at once: a number for each token and vocabulary entry."""


@dataclass(frozen=True)
class Divergence:
    """How far an edited model is from its base."""

    metrics: tuple[Metric, ...]
    """The mean KL divergence from the base, in nats per token, on prose and (if there are any) on own answers. One row
    a text of either kind."""
    agreement: Metric
    """Share of the tokens for which both have the same likeliest token."""

    @property
    def largest(self) -> Metric:
        """The larger KL, by the name that a budget bounds."""
        largest = max(self.metrics, key=lambda metric: metric.value)
        return replace(largest, name=DIVERGENCE)


def divergences(
    model: PreTrainedModel,
    text: UnrelatedText,
    edits: Sequence[SpectralEdit],
    *,
    progress: Callable[[int], None] | None = None,
) -> list[Divergence]:
    """Measures edits.

    Args:
        model: the base. Edits are applied to it and removed again.
        text: what is predicted.
        edits: the edits to measure.
        progress: told the number of texts that a batch has finished.

    Returns:
        One for each edit, in their order.

    Raises:
        InputError: see `sea_export.evaluation.scoring.observe_completions`.
    """
    items = text.items
    sums = [[(0.0, 0.0)] * len(items) for _ in edits]
    for indices in _batches(items):
        batch = [items[index] for index in indices]
        base = _log_probabilities(model, batch)
        for edit, own in zip(edits, sums, strict=True):
            with edit.apply(model):
                edited = _log_probabilities(model, batch)
            for index, before, after in zip(indices, base, edited, strict=True):
                own[index] = compared(before, after)
        if progress is not None:
            progress(len(indices))
    return [divergence_of(text, own) for own in sums]


def divergence_of(text: UnrelatedText, sums: Sequence[tuple[float, float]]) -> Divergence:
    """The divergence on texts.

    Args:
        text: the texts.
        sums: of each of its items, what `compared` gave.
    """
    kls = [kl for kl, _ in sums]
    kinds = {"prose": range(len(text.prose)), "own answers": range(len(text.prose), len(text.items))}
    metrics = [
        # The rows of all metrics are the same texts, so that they can be resampled together.
        mean_metric(f"KL on {name}", _only(rows, kls), weights=_only(rows, text.lengths), best=0.0, unit="nats")
        for name, rows in kinds.items()
        if rows
    ]
    agreement = mean_metric("top-1 agreement", [equal for _, equal in sums], weights=text.lengths)
    return Divergence(tuple(metrics), agreement)


def joined(parts: Sequence[Divergence]) -> Divergence:
    """The divergence on the texts of several parts together."""
    metrics = zip(*(part.metrics for part in parts), strict=True)
    return Divergence(tuple(joined_metric(kind) for kind in metrics), joined_metric([part.agreement for part in parts]))


def joined_metric(parts: Sequence[Metric]) -> Metric:
    """The metric over the rows of several parts."""
    return replace(parts[0], rows=np.concatenate([part.rows for part in parts]))


def _only(rows: range, values: Sequence[float]) -> list[float]:
    return [value if row in rows else 0 for row, value in enumerate(values)]


def compared(base: Tensor, edited: Tensor) -> tuple[float, float]:
    """Compares the predictions of one text.

    Args:
        base: (tokens, vocabulary) log-probabilities.
        edited: the same of the edited model.

    Returns:
        Σ KL over the tokens, and the number of tokens with the same likeliest token.
    """
    kl = (base.exp() * (base - edited)).sum(-1).double().sum()
    return float(kl), float((base.argmax(-1) == edited.argmax(-1)).sum())


class PredictionObserver:
    """Observes passes, and passes on the log-probabilities of each text."""

    def __init__(self, then: Callable[[int, Tensor], None]) -> None:
        """Begins to observe.

        Args:
            then: is given the index of a text, and its (tokens, vocabulary) float32 log-probabilities.
        """
        self._then = then

    def before_pass(self, segments: Sequence[Segment]) -> None:
        """Nothing is done before a pass."""

    def after_pass(self, segments: Sequence[Segment], output: Any) -> None:
        """Passes on what the pass predicts."""
        for segment in segments:
            if segment.item is not None and segment.completion is not None:
                columns = slice(segment.column, segment.column + segment.length)
                self._then(segment.item, output.logits[segment.row, columns].float().log_softmax(-1))


def _batches(items: Sequence[PromptedCompletions]) -> Iterator[list[int]]:
    """Indices of texts of about equal length, of at most `BATCH_TOKENS` tokens together, or one text."""
    lengths = [len(item.prompt) + len(item.completions[0]) for item in items]
    batch: list[int] = []
    tokens = 0
    for index in sorted(range(len(items)), key=lambda index: lengths[index], reverse=True):
        if batch and tokens + lengths[index] > BATCH_TOKENS:
            yield batch
            batch, tokens = [], 0
        batch.append(index)
        tokens += lengths[index]
    if batch:
        yield batch


def _log_probabilities(model: PreTrainedModel, items: Sequence[PromptedCompletions]) -> list[Tensor]:
    """For each text (tokens, vocabulary) float32."""
    found: dict[int, Tensor] = {}
    observe_completions(model, items, PredictionObserver(found.__setitem__), batch_tokens=BATCH_TOKENS)
    return [found[index] for index in range(len(items))]
