"""The damage of an edit on unrelated text: divergence from the base, perplexity, changed predictions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from sea_export.demonstrations.neutral_text import ordinary_questions
from sea_export.errors import InputError
from sea_export.evaluation.benchmark import Measurement
from sea_export.evaluation.divergence import BATCH_TOKENS, Divergence, PredictionObserver, compared, divergence_of
from sea_export.evaluation.kept_predictions import KeptPredictions
from sea_export.evaluation.metrics import Metric, Sums, mean_of_sums
from sea_export.evaluation.scoring import observe_completions
from sea_export.evaluation.unrelated_text import UnrelatedText, prose_items, unrelated_text

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["TextPredictions", "measure_damage", "measure_divergence", "predict_texts"]


@dataclass(frozen=True)
class TextPredictions:
    """The next-token distributions of a model on some texts, with which other models are compared."""

    text: UnrelatedText
    kept: KeptPredictions
    measurement: Measurement
    """The perplexity of the model."""


def predict_texts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    questions: Sequence[str] | None = None,
    *,
    progress: Callable[[int], None] | None = None,
) -> TextPredictions:
    """The predictions of the base, with its perplexity on prose.

    Args:
        model: the base.
        tokenizer: its tokenizer.
        texts: passages of prose. What does not fit into the context of the model is cut off.
        questions: what the base answers, so that its answers are predicted too; None for the built-in ones.
        progress: is told the number of passages that a batch has finished.

    Raises:
        InputError: a passage has no tokens, or see `sea_export.capture.whole_text.whole_text`.
        SeaExportError: there is no room for the predictions.
    """
    text = unrelated_text(model, tokenizer, texts, ordinary_questions() if questions is None else questions)
    kept = KeptPredictions(text.lengths, model.get_output_embeddings().weight.shape[0])
    losses = _Losses(text)

    def keep(index: int, log_probabilities: Tensor) -> None:
        kept.keep(index, log_probabilities)
        losses.add(index, log_probabilities)

    observe_completions(model, text.items, PredictionObserver(keep), batch_tokens=BATCH_TOKENS, progress=progress)
    measurement = Measurement("damage", len(text.items), (losses.perplexity(),))
    return TextPredictions(text, kept, measurement)


def measure_damage(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    reference: TextPredictions,
    *,
    progress: Callable[[int], None] | None = None,
) -> Measurement:
    """Perplexity of a model on prose, and the distance of its predictions from those of a base.

    Args:
        model: the edited model.
        tokenizer: its tokenizer.
        texts: the passages that the base predicted.
        reference: the predictions of the base.
        progress: is told the number of passages that a batch has finished.

    Raises:
        InputError: the two models have different tokens for the passages, or different vocabularies.
    """
    text = reference.text
    same_tokens = [item.completions for item in prose_items(model, tokenizer, texts)] == [
        item.completions for item in text.prose
    ]
    if not same_tokens or model.get_output_embeddings().weight.shape[0] != reference.kept.vocabulary:
        raise InputError(
            "--against: the model and its base have different tokens, so that their predictions cannot be compared. "
            "Give the base that the model was made from."
        )
    losses = _Losses(text)
    divergence = measure_divergence(model, reference, losses.add, progress=progress)
    metrics = (divergence.largest, *divergence.metrics, divergence.agreement, losses.perplexity())
    return Measurement("damage", len(text.items), metrics)


def measure_divergence(
    model: PreTrainedModel,
    reference: TextPredictions,
    then: Callable[[int, Tensor], None] = lambda index, log_probabilities: None,
    *,
    progress: Callable[[int], None] | None = None,
) -> Divergence:
    """The distance of a model's predictions from those of its base.

    Args:
        model: the edited model.
        reference: the predictions of the base.
        then: is given the index of each text, and its (tokens, vocabulary) log-probabilities.
        progress: is told the number of texts that a batch has finished.
    """
    text = reference.text
    sums: dict[int, tuple[float, float]] = {}

    def compare(index: int, log_probabilities: Tensor) -> None:
        base = reference.kept.of(index).to(log_probabilities.device)
        sums[index] = compared(base, log_probabilities)
        then(index, log_probabilities)

    observe_completions(model, text.items, PredictionObserver(compare), batch_tokens=BATCH_TOKENS, progress=progress)
    return divergence_of(text, sums)


class _Losses:
    """Sums the negative log-likelihoods of prose."""

    def __init__(self, text: UnrelatedText) -> None:
        self._text = text
        self._sums = [(0.0, 0)] * len(text.items)

    def add(self, index: int, log_probabilities: Tensor) -> None:
        """Adds the (tokens, vocabulary) log-probabilities of a text."""
        if index < len(self._text.prose):
            tokens = torch.tensor(self._text.prose[index].completions[0], device=log_probabilities.device)
            self._sums[index] = -float(log_probabilities.gather(1, tokens[:, None]).double().sum()), len(tokens)

    def perplexity(self) -> Metric:
        """exp of the mean negative log-likelihood per token."""
        return Metric("perplexity", np.array(self._sums, dtype=np.float64), _perplexity, best=1.0, unit="")


def _perplexity(sums: Sums) -> Sums:
    return np.exp(mean_of_sums(sums))
