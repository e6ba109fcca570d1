"""The damage of an edit on unrelated text: divergence from the base, perplexity, changed predictions."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sea_export.capture.batching import PromptedCompletions, Segment
from sea_export.capture.whole_text import whole_text
from sea_export.errors import InputError
from sea_export.evaluation.benchmark import Measurement
from sea_export.evaluation.metrics import Metric, Sums, mean_metric, mean_of_sums
from sea_export.evaluation.scoring import observe_completions
from sea_export.model.architecture import context_length

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["DIVERGENCE", "TextPredictions", "measure_damage", "predict_texts"]

DIVERGENCE = "KL from the base"
"""Name of the metric that a search keeps small."""

# The logits of all tokens of a pass are in memory at once: one number per token and entry of the vocabulary.
_BATCH_TOKENS = 512


@dataclass(frozen=True)
class TextPredictions:
    """The next-token distributions of a model over some texts, with which other models are compared."""

    items: tuple[PromptedCompletions, ...]
    """The texts in tokens."""
    starts: tuple[int, ...]
    """Where the rows of each text begin in `log_probabilities`."""
    log_probabilities: NDArray[np.float32]
    """(tokens of all texts, vocabulary), in a temporary file that is removed with this object."""
    measurement: Measurement
    """The perplexity of the model."""


def predict_texts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    *,
    progress: Callable[[int], None] | None = None,
) -> TextPredictions:
    """The predictions of the base, with its perplexity.

    Args:
        model: the base.
        tokenizer: its tokenizer.
        texts: passages. What does not fit into the context of the model is cut off.
        progress: is told the number of passages that a batch has finished.

    Raises:
        InputError: a passage has no tokens, or see `sea_export.capture.whole_text.whole_text`.
    """
    items = _items(model, tokenizer, texts)
    lengths = [len(item.completions[0]) for item in items]
    starts = tuple(int(start) for start in np.cumsum([0, *lengths[:-1]]))
    vocabulary = model.get_output_embeddings().weight.shape[0]
    with tempfile.TemporaryFile() as file:
        stored: NDArray[np.float32] = np.memmap(file, np.float32, "w+", shape=(sum(lengths), vocabulary))

    def keep(index: int, log_probabilities: Tensor) -> None:
        stored[starts[index] : starts[index] + lengths[index]] = log_probabilities.cpu().numpy()

    observer = _Observer(items, keep)
    observe_completions(model, items, observer, batch_tokens=_BATCH_TOKENS, progress=progress)
    measurement = Measurement("damage", len(items), (observer.perplexity(),))
    return TextPredictions(tuple(items), starts, stored, measurement)


def measure_damage(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    reference: TextPredictions,
    *,
    progress: Callable[[int], None] | None = None,
) -> Measurement:
    """Perplexity of a model, and the distance of its predictions from those of a base.

    Args:
        model: the edited model.
        tokenizer: its tokenizer.
        texts: the passages that the base predicted.
        reference: the predictions of the base.
        progress: is told the number of passages that a batch has finished.

    Raises:
        InputError: the two models have different tokens for the passages, or different vocabularies.
    """
    items = _items(model, tokenizer, texts)
    same_tokens = [item.completions for item in items] == [item.completions for item in reference.items]
    if not same_tokens or model.get_output_embeddings().weight.shape[0] != reference.log_probabilities.shape[1]:
        raise InputError(
            "--against: the model and its base have different tokens, so that their predictions cannot be compared. "
            "Give the base that the model was made from."
        )
    divergences, agreements = [0.0] * len(items), [0.0] * len(items)

    def compare(index: int, log_probabilities: Tensor) -> None:
        start = reference.starts[index]
        stored = reference.log_probabilities[start : start + len(log_probabilities)]
        base = torch.from_numpy(np.array(stored)).to(log_probabilities.device)
        divergences[index] = float((base.exp() * (base - log_probabilities)).sum(-1).double().sum())
        agreements[index] = float((base.argmax(-1) == log_probabilities.argmax(-1)).sum())

    observer = _Observer(items, compare)
    observe_completions(model, items, observer, batch_tokens=_BATCH_TOKENS, progress=progress)
    lengths = [len(item.completions[0]) for item in items]
    metrics = (
        mean_metric(DIVERGENCE, divergences, weights=lengths, best=0.0, unit="nats"),
        mean_metric("equal likeliest token", agreements, weights=lengths),
        observer.perplexity(),
    )
    return Measurement("damage", len(items), metrics)


def _items(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]
) -> list[PromptedCompletions]:
    context = context_length(model.config)
    whole = [whole_text(tokenizer, text) for text in texts]
    if context is None:
        return whole
    return [PromptedCompletions(one.prompt, [one.completions[0][: context - len(one.prompt)]]) for one in whole]


def _perplexity(sums: Sums) -> Sums:
    return np.exp(mean_of_sums(sums))


class _Observer:
    """Observes passes: sums negative log-likelihoods, and passes on the distributions of each text."""

    def __init__(self, items: Sequence[PromptedCompletions], then: Callable[[int, Tensor], None]) -> None:
        """Starts with sums of 0.

        Args:
            items: the texts.
            then: is given the index of a text and its (tokens, vocabulary) float32 log-probabilities.
        """
        self._items = items
        self._then = then
        self._losses = [0.0] * len(items)

    def before_pass(self, segments: Sequence[Segment]) -> None:
        pass

    def after_pass(self, segments: Sequence[Segment], output: Any) -> None:
        for segment in segments:
            if segment.item is None or segment.completion is None:
                continue
            log_probabilities = output.logits[segment.row, : segment.length].float().log_softmax(-1)
            tokens = torch.tensor(self._items[segment.item].completions[0], device=log_probabilities.device)
            self._losses[segment.item] = -float(log_probabilities.gather(1, tokens[:, None]).double().sum())
            self._then(segment.item, log_probabilities)

    def perplexity(self) -> Metric:
        """exp of the mean negative log-likelihood per token."""
        columns = [(loss, len(item.completions[0])) for loss, item in zip(self._losses, self._items, strict=True)]
        return Metric("perplexity", np.array(columns, dtype=np.float64), _perplexity, best=1.0, unit="")
