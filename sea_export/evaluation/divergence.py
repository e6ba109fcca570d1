"""How far the predictions of an edited model are from those of its base, on unrelated text.

The logits of the base are needed for every edit, and are too large to keep in memory. They are kept in a file, or
computed again for each batch, from the last hidden states of the base, which are kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from sea_export.capture.batching import Segment
from sea_export.edit.spectral_edit import SpectralEdit
from sea_export.evaluation.kept_predictions import KeptPredictions
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

# An interval reaches so many standard errors to either side, and needs so many texts.
_STANDARD_ERRORS, _FEWEST_TEXTS = 4.0, 5


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

    def is_beyond(self, limit: float) -> bool:
        """Whether the KL on some kind of text is above a limit by more than the choice of these texts explains."""
        return any(not _lowest(metric) <= limit for metric in self.metrics)


class RepeatedDivergence:
    """Measures several edits on the same text, from their lowest layer on."""

    def __init__(
        self,
        model: PreTrainedModel,
        text: UnrelatedText,
        starts: Collection[int],
        *,
        directory: Path | None = None,
    ) -> None:
        """Runs the base once, whose hidden states are kept.

        Args:
            model: the base. Edits are applied to it and removed again.
            text: what is predicted.
            starts: the lowest edited layers of the edits to come.
            directory: where hidden states and predictions of the base are kept in files, which pays for many edits;
                None keeps hidden states in memory, and no predictions.

        Raises:
            InputError: see `sea_export.evaluation.repeated_scoring.RepeatedScorer`.
            SeaExportError: there is no room for the predictions.
        """
        self._text = text
        self._scorer = RepeatedScorer(model, text.items, starts, batch_tokens=BATCH_TOKENS, directory=directory)
        self._base: KeptPredictions | None = None
        if directory is not None:
            self._base = KeptPredictions(text.lengths, model.get_output_embeddings().weight.shape[0], directory)
            self._scorer.observe(PredictionObserver(self._base.keep))

    @property
    def count(self) -> int:
        """The number of texts."""
        return len(self._text.items)

    def of(
        self, edit: SpectralEdit, progress: Callable[[int], None] | None = None, *, limit: float = math.inf
    ) -> Divergence:
        """The divergence of an edit.

        Args:
            edit: the edit.
            progress: told the number of texts that a batch has finished.
            limit: as soon as the divergence is surely beyond it, no further text is measured.
        """
        sums: dict[int, tuple[float, float]] = {}
        for indices in self._batches(edit, sums):
            if progress is not None:
                progress(len(indices))
            if limit < math.inf and divergence_of(self._text, sums).is_beyond(limit):
                break
        return divergence_of(self._text, sums)

    def _batches(self, edit: SpectralEdit, sums: dict[int, tuple[float, float]]) -> Iterator[Sequence[int]]:
        """Yields the indices of the texts that a batch has finished, whose sums are then known."""
        kept = self._base
        if kept is not None:

            def compare(index: int, log_probabilities: Tensor) -> None:
                sums[index] = compared(kept.of(index).to(log_probabilities.device), log_probabilities)

            yield from self._scorer.batches(PredictionObserver(compare), edit)
            return
        base: dict[int, Tensor] = {}
        edited: dict[int, Tensor] = {}
        passes = zip(
            self._scorer.batches(PredictionObserver(base.__setitem__)),
            self._scorer.batches(PredictionObserver(edited.__setitem__), edit),
            strict=True,
        )
        for indices, _ in passes:
            sums.update({index: compared(base.pop(index), edited.pop(index)) for index in indices})
            yield indices


def divergence_of(text: UnrelatedText, sums: Mapping[int, tuple[float, float]]) -> Divergence:
    """The divergence on texts.

    Args:
        text: the texts.
        sums: what `compared` gave of each of its items, or of some of them, by index.
    """
    count = len(text.items)
    kls = [sums.get(index, (0.0, 0.0))[0] for index in range(count)]
    lengths = [length if index in sums else 0 for index, length in enumerate(text.lengths)]
    kinds = {"prose": range(len(text.prose)), "own answers": range(len(text.prose), count)}
    metrics = [
        # The rows of all metrics are the same texts, so that they can be resampled together.
        mean_metric(f"KL on {name}", _only(rows, kls), weights=_only(rows, lengths), best=0.0, unit="nats")
        for name, rows in kinds.items()
        if not sums.keys().isdisjoint(rows)
    ]
    equal = [sums.get(index, (0.0, 0.0))[1] for index in range(count)]
    return Divergence(tuple(metrics), mean_metric("top-1 agreement", equal, weights=lengths))


def joined(parts: Sequence[Divergence]) -> Divergence:
    """The divergence on the texts of several parts together. A part may have texts of one kind only."""
    kinds = {metric.name: metric for part in parts for metric in part.metrics}
    metrics = tuple(joined_metric([_of_kind(part, kind) for part in parts]) for kind in kinds.values())
    return Divergence(metrics, joined_metric([part.agreement for part in parts]))


def _of_kind(part: Divergence, kind: Metric) -> Metric:
    """The metric of a part that has a name; one of texts that do not count if it has none."""
    none = replace(kind, rows=np.zeros_like(part.agreement.rows))
    return next((metric for metric in part.metrics if metric.name == kind.name), none)


def joined_metric(parts: Sequence[Metric]) -> Metric:
    """The metric over the rows of several parts."""
    return replace(parts[0], rows=np.concatenate([part.rows for part in parts]))


def _lowest(metric: Metric) -> float:
    """The lower end of the interval of a mean over texts; minus infinity for too few of them."""
    rows = metric.rows[metric.rows[:, 1] > 0]
    if len(rows) < _FEWEST_TEXTS:
        return -math.inf
    with np.errstate(invalid="ignore"):  # of an infinite KL, which has no interval
        deviations = rows[:, 0] - metric.value * rows[:, 1]
    error = math.sqrt((deviations**2).sum() * len(rows) / (len(rows) - 1)) / rows[:, 1].sum()
    return metric.value - _STANDARD_ERRORS * error


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
