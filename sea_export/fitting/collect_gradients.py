"""From demonstrations and neutral text to statistics of gradients, for all methods that need them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch

from sea_export.capture.batching import PromptedCompletions
from sea_export.capture.gradients import OutputGradients, own_labels, read_gradients
from sea_export.capture.own_answers import own_answers
from sea_export.capture.scored_texts import ScoredText
from sea_export.capture.whole_text import whole_text
from sea_export.demonstrations.neutral_text import curvature_questions, curvature_texts
from sea_export.demonstrations.tokenize import TokenizedDemonstration
from sea_export.errors import InputError
from sea_export.fitting.edit_method import errors_of
from sea_export.fitting.gradient_statistics import (
    MarginGradients,
    MarginStatistics,
    NeutralGradients,
    NeutralStatistics,
)
from sea_export.model.architecture import OutputProjection
from sea_export.model.targets import Target
from sea_export.options import FitOptions

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = [
    "curvature_items",
    "curvature_prose",
    "margin_statistics",
    "margin_texts",
    "neutral_statistics",
    "neutral_texts",
]

_PASSES = 4
"""Into so many passes a batch of a forward capture is divided: a backward pass keeps that much more of each token."""
_PIECE = 32
"""Tokens of a neutral text. More and shorter texts give more samples, and so a Fisher information of higher rank."""


def margin_statistics(
    model: PreTrainedModel,
    demonstrations: Sequence[TokenizedDemonstration],
    projections: Sequence[OutputProjection],
    options: FitOptions,
    progress: Callable[[int], None] | None = None,
) -> dict[Target, MarginStatistics]:
    """Gradients of the mean margin of demonstrations.

    Args:
        model: a causal language model in memory.
        demonstrations: at least one, tokenized.
        projections: the output projections of the targets.
        options: `form` and `capture.batch_tokens` are used.
        progress: told the number of demonstrations that each batch has finished.

    Raises:
        InputError: a gradient is not finite.
    """
    margins = {one.target: MarginGradients(maps=options.form != "bias") for one in projections}
    read_gradients(
        model,
        margin_texts(demonstrations),
        projections,
        lambda target, read: margins[target].update(_finite(target, read)),
        batch_tokens=_batch_tokens(options),
        progress=progress,
    )
    return {target: one.finish() for target, one in margins.items()}


def neutral_statistics(
    model: PreTrainedModel,
    texts: Sequence[PromptedCompletions],
    projections: Sequence[OutputProjection],
    options: FitOptions,
) -> dict[Target, NeutralStatistics]:
    """Gradients of the log-likelihood of neutral text, for labels that are drawn from the model itself.

    Args:
        model: a causal language model in memory.
        texts: each a prompt with one completion, which is scored: see `curvature_items`.
        projections: the output projections of the targets.
        options: `form`, `capture.batch_tokens` and `capture.seed` are used.

    Raises:
        InputError: a gradient is not finite.
    """
    lengths = [len(one.completions[0]) for one in texts]
    neutrals = {one.target: NeutralGradients(lengths, maps=options.form != "bias") for one in projections}
    read_gradients(
        model,
        neutral_texts(texts),
        projections,
        lambda target, read: neutrals[target].update(_finite(target, read)),
        batch_tokens=_batch_tokens(options),
        labels=own_labels(torch.Generator().manual_seed(options.capture.seed)),
    )
    return {target: one.finish() for target, one in neutrals.items()}


def curvature_items(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[PromptedCompletions]:
    """The neutral text of a natural gradient: built-in prose in pieces, and the model's own answers to questions.

    Against prose alone the step would be free to change answers, which are what an edit is for.

    Args:
        model: a causal language model.
        tokenizer: its tokenizer.

    Raises:
        InputError: see `sea_export.capture.whole_text.whole_text` and `sea_export.capture.own_answers.own_answers`.
    """
    return [*curvature_prose(tokenizer), *own_answers(model, tokenizer, curvature_questions(), seed=1)]


def curvature_prose(tokenizer: PreTrainedTokenizerBase) -> list[PromptedCompletions]:
    """The part of `curvature_items` that is the same for all models with a tokenizer.

    Args:
        tokenizer: the tokenizer.

    Raises:
        InputError: see `sea_export.capture.whole_text.whole_text`.
    """
    items = []
    for text in curvature_texts():
        whole = whole_text(tokenizer, text)
        tokens = whole.completions[0]
        items += [
            PromptedCompletions(whole.prompt, [tokens[start : start + _PIECE]])
            for start in range(0, len(tokens), _PIECE)
        ]
    return items


def margin_texts(demonstrations: Sequence[TokenizedDemonstration]) -> list[ScoredText]:
    """The text of each demonstration, weighted so that the sum of all objectives is the mean margin."""
    count = len(demonstrations)
    return [
        ScoredText(
            one.prompt,
            (one.positive, one.negative),
            (1 / len(one.positive) / count, -1 / len(one.negative) / count),
        )
        for one in demonstrations
    ]


def neutral_texts(texts: Sequence[PromptedCompletions]) -> list[ScoredText]:
    """Texts of which the completion is scored, weighted by one over the root of its tokens."""
    return [ScoredText(one.prompt, one.completions, (len(one.completions[0]) ** -0.5,)) for one in texts]


def _batch_tokens(options: FitOptions) -> int:
    return max(1, options.capture.batch_tokens // _PASSES)


def _finite(target: Target, read: OutputGradients) -> OutputGradients:
    if not read.gradients.isfinite().all():
        with errors_of(target):
            raise InputError("gradients: one is NaN or infinite. Load the model in float32 (--dtype float32).")
    return read
