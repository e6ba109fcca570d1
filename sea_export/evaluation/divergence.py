"""How far the predictions of an edited model are from those of its base, on unrelated text.

The logits of the base are needed for every edit, and are too large to keep in memory. They are computed again for each
batch, from the last hidden states of the base, which are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from sea_export.capture.batching import Segment
from sea_export.edit.spectral_edit import SpectralEdit
from sea_export.evaluation.metrics import Metric, mean_metric
from sea_export.evaluation.repeated_scoring import RepeatedScorer
from sea_export.evaluation.unrelated_text import UnrelatedText

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = [
    "BATCH_TOKENS",
    "DIVERGENCE",
    "Divergence",
    "PredictionObserver",
    "RepeatedDivergence",
    "compared",
    "divergence_of",
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


class RepeatedDivergence:
    """Measures several edits on the same text, from their lowest layer on."""

    def __init__(self, model: PreTrainedModel, text: UnrelatedText, starts: Collection[int]) -> None:
        """Runs the base once, whose hidden states are kept.

        Args:
            model: the base. Edits are applied to it and removed again.
            text: what is predicted.
            starts: the lowest edited layers of the edits to come.

        Raises:
            InputError: see `sea_export.evaluation.repeated_scoring.RepeatedScorer`.
        """
        self._text = text
        self._scorer = RepeatedScorer(model, text.items, starts, batch_tokens=BATCH_TOKENS)

    @property
    def count(self) -> int:
        """The number of texts."""
        return len(self._text.items)

    def of(self, edit: SpectralEdit, progress: Callable[[int], None] | None = None) -> Divergence:
        """The divergence of an edit.

        Args:
            edit: the edit.
            progress: told the number of texts that a batch has finished.
        """
        base: dict[int, Tensor] = {}
        edited: dict[int, Tensor] = {}
        sums = [(0.0, 0.0)] * len(self._text.items)
        passes = zip(
            self._scorer.batches(PredictionObserver(base.__setitem__)),
            self._scorer.batches(PredictionObserver(edited.__setitem__), edit),
            strict=True,
        )
        for indices, _ in passes:
            for index in indices:
                sums[index] = compared(base.pop(index), edited.pop(index))
            if progress is not None:
                progress(len(indices))
        return divergence_of(self._text, sums)


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
