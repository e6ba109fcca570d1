"""Log-likelihoods of completions: the one scorer that all benchmarks share.

The last token of a prompt predicts the first token of a completion. It is moved from the prompt to the start of every
completion. Prompts are then computed by the decoder alone. Completions are computed by the whole model, and its head
computes only positions that predict a token of a completion.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from sea_export.capture.batching import PromptedCompletions, Segment
from sea_export.capture.forward import SegmentObserver, run_batches
from sea_export.capture.prefix_cache import prefix_cache_mode
from sea_export.demonstrations.tokenize import tokenize_completions
from sea_export.errors import InputError
from sea_export.model.architecture import position_limit

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = [
    "CompletionScorer",
    "completion_log_likelihoods",
    "observe_completions",
    "predicting_items",
    "prompted_completions",
]


def completion_log_likelihoods(
    model: PreTrainedModel,
    items: Sequence[PromptedCompletions],
    *,
    batch_tokens: int = 2048,
    progress: Callable[[int], None] | None = None,
) -> list[list[float]]:
    """Σ log p(token | all tokens before it) over the tokens of each completion, natural logarithm.

    Tokens that all prompts begin with are computed once, and each prompt once for all of its completions. Log-softmax
    is computed in float32, for every dtype of the model.

    Args:
        model: a causal language model. It is set to evaluation mode.
        items: prompts, each with at least one completion, all of at least one token.
        batch_tokens: about how many tokens a forward pass computes.
        progress: told the number of items that a batch has finished.

    Returns:
        For each item, in order, one log-likelihood per completion.

    Raises:
        InputError: a prompt or a completion has no tokens, a prompt has no completions, or both together are longer
            than the model's context.
    """
    scorer = CompletionScorer(items)
    observe_completions(model, items, scorer, batch_tokens=batch_tokens, progress=progress)
    return scorer.log_likelihoods()


def observe_completions(
    model: PreTrainedModel,
    items: Sequence[PromptedCompletions],
    observer: SegmentObserver,
    *,
    batch_tokens: int = 2048,
    progress: Callable[[int], None] | None = None,
) -> None:
    """The passes of `completion_log_likelihoods`, for callers that need more of the logits.

    Args:
        model: see `completion_log_likelihoods`.
        items: see `completion_log_likelihoods`.
        observer: if a segment belongs to a completion, its row of the logits predicts the tokens of that completion,
            one per position.
        batch_tokens: see `completion_log_likelihoods`.
        progress: see `completion_log_likelihoods`.

    Raises:
        InputError: see `completion_log_likelihoods`.
    """
    shifted = predicting_items(items)
    if not items:
        return
    _check_lengths(items, position_limit(model))
    model.eval()
    decoder = cast("PreTrainedModel", model.base_model)
    prefix_cache = prefix_cache_mode(decoder, shifted, batch_tokens=batch_tokens)
    for indices in run_batches(
        decoder, model, shifted, batch_tokens=batch_tokens, prefix_cache=prefix_cache, observer=observer
    ):
        if progress is not None:
            progress(len(indices))


def predicting_items(items: Sequence[PromptedCompletions]) -> list[PromptedCompletions]:
    """The items to compute, in which every token of a completion predicts the next token to score.

    Args:
        items: see `completion_log_likelihoods`.

    Raises:
        InputError: see `completion_log_likelihoods`.
    """
    _check(items)
    return [
        PromptedCompletions(item.prompt[:-1], [(item.prompt[-1], *completion[:-1]) for completion in item.completions])
        for item in items
    ]


def prompted_completions(
    tokenizer: PreTrainedTokenizerBase, prompt: str, completions: Sequence[str]
) -> PromptedCompletions:
    """A prompt and its completions as tokens: see `sea_export.demonstrations.tokenize.tokenize_completions`."""
    return PromptedCompletions(*tokenize_completions(tokenizer, prompt, completions))


def _check(items: Sequence[PromptedCompletions]) -> None:
    for index, item in enumerate(items):
        if not len(item.prompt):
            raise InputError(
                f"item {index}: its prompt has no tokens, so that nothing predicts the first token of a completion. "
                "Begin the prompt with the first special token of the tokenizer."
            )
        if not item.completions:
            raise InputError(f"item {index}: it has no completions to score. Give at least one.")
        for position, completion in enumerate(item.completions):
            if not len(completion):
                raise InputError(f"item {index}, completion {position}: it has no tokens to score. Give at least one.")


def _check_lengths(items: Sequence[PromptedCompletions], context: int | None) -> None:
    for index, item in enumerate(items):
        length = len(item.prompt) + max(map(len, item.completions))
        if context is not None and length > context:
            raise InputError(
                f"item {index + 1}: its prompt with its longest completion has {length} tokens, and the model reads "
                f"{context}. Shorten it, or remove it."
            )


class CompletionScorer:
    """Observes passes: sums the log-probabilities of the tokens of completions."""

    def __init__(self, items: Sequence[PromptedCompletions]) -> None:
        """Starts with nothing.

        Args:
            items: see `completion_log_likelihoods`.
        """
        self._items = items
        self._scores: dict[tuple[int, int], Tensor] = {}

    def before_pass(self, segments: Sequence[Segment]) -> None:
        pass

    def after_pass(self, segments: Sequence[Segment], output: Any) -> None:
        for segment in segments:
            if segment.item is None or segment.completion is None:
                continue
            # One row at a time: a float32 copy of all logits could be larger than the model.
            logits = output.logits[segment.row, segment.column : segment.column + segment.length].float()
            tokens = torch.tensor(self._items[segment.item].completions[segment.completion], device=logits.device)
            self._scores[segment.item, segment.completion] = -cross_entropy(logits, tokens, reduction="sum")

    def log_likelihoods(self) -> list[list[float]]:
        """For each item one log-likelihood per completion, once all passes are done."""
        return [
            [self._scores[index, completion].item() for completion in range(len(item.completions))]
            for index, item in enumerate(self._items)
        ]
