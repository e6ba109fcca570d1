"""The KL divergence of several edits of a model from the model itself, over the same batches of text.

The logits of the base are needed for every edit. They are too large to keep: so each batch is run without an edit, and
then with each of the edits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sea_export.capture.batching import PromptedCompletions, Segment
from sea_export.edit.spectral_edit import SpectralEdit
from sea_export.evaluation.metrics import Metric, mean_metric
from sea_export.evaluation.scoring import observe_completions

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["Divergence", "divergences"]

# The logits of all scored tokens of a batch are in memory at once, twice.
_BATCH_TOKENS = 512


@dataclass(frozen=True)
class Divergence:
    """How far an edited model is from its base on some texts."""

    kl: Metric
    """Mean KL divergence from the base, in nats per token. One row a text."""
    agreement: Metric
    """Share of the tokens at which both have the same likeliest token."""


def divergences(
    model: PreTrainedModel,
    items: Sequence[PromptedCompletions],
    edits: Sequence[SpectralEdit],
    *,
    progress: Callable[[int], None] | None = None,
) -> list[Divergence]:
    """Measures edits on texts.

    Args:
        model: the base. Edits are applied to it and removed again.
        items: the texts, each a prompt with one completion. The tokens of completions count.
        edits: the edits to measure.
        progress: told the number of texts that a batch has finished.

    Returns:
        One for each edit, in their order.

    Raises:
        InputError: see `sea_export.evaluation.scoring.observe_completions`.
    """
    sums = [[(0.0, 0.0)] * len(items) for _ in edits]
    for indices in _batches(items):
        batch = [items[index] for index in indices]
        base = _log_probabilities(model, batch)
        for edit, own in zip(edits, sums, strict=True):
            with edit.apply(model):
                edited = _log_probabilities(model, batch)
            for index, before, after in zip(indices, base, edited, strict=True):
                own[index] = _compared(before, after)
        if progress is not None:
            progress(len(indices))
    lengths = [len(item.completions[0]) for item in items]
    return [
        Divergence(
            mean_metric("KL from the base", [kl for kl, _ in own], weights=lengths, best=0.0, unit="nats"),
            mean_metric("top-1 agreement", [equal for _, equal in own], weights=lengths),
        )
        for own in sums
    ]


def _batches(items: Sequence[PromptedCompletions]) -> Iterator[list[int]]:
    """Indices of texts of about equal length, of at most `_BATCH_TOKENS` tokens together, or one text."""
    lengths = [len(item.prompt) + len(item.completions[0]) for item in items]
    batch: list[int] = []
    tokens = 0
    for index in sorted(range(len(items)), key=lambda index: lengths[index], reverse=True):
        if batch and tokens + lengths[index] > _BATCH_TOKENS:
            yield batch
            batch, tokens = [], 0
        batch.append(index)
        tokens += lengths[index]
    if batch:
        yield batch


def _log_probabilities(model: PreTrainedModel, items: Sequence[PromptedCompletions]) -> list[Tensor]:
    """For each text (tokens, vocabulary) float32."""
    observer = _Observer(len(items))
    observe_completions(model, items, observer, batch_tokens=_BATCH_TOKENS)
    return observer.found


class _Observer:
    def __init__(self, count: int) -> None:
        self.found: list[Tensor] = [torch.empty(0)] * count

    def before_pass(self, segments: Sequence[Segment]) -> None:
        pass

    def after_pass(self, segments: Sequence[Segment], output: Any) -> None:
        for segment in segments:
            if segment.item is not None and segment.completion is not None:
                columns = slice(segment.column, segment.column + segment.length)
                self.found[segment.item] = output.logits[segment.row, columns].float().log_softmax(-1)


def _compared(base: Tensor, edited: Tensor) -> tuple[float, float]:
    """Σ KL over the tokens of a text, and the number of tokens with the same likeliest token."""
    kl = (base.exp() * (base - edited)).sum(-1).double().sum()
    return float(kl), float((base.argmax(-1) == edited.argmax(-1)).sum())
