"""A model's own sampled answers to ordinary questions: text of the kind that it writes where it is used."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sea_export.capture.batching import PromptedCompletions
from sea_export.capture.generate import sampled_continuations
from sea_export.demonstrations.prompt_template import prompt_tokens
from sea_export.model.architecture import context_length

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["own_answers"]

_NEW_TOKENS = 32
"""Length of an answer: what an edit changes about answers shows in how they begin."""
_BATCH_TOKENS = 8192
"""Each step of a batch computes one token of every answer, so that few answers at a time would take longer."""


def own_answers(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, questions: Sequence[str], *, seed: int = 0
) -> list[PromptedCompletions]:
    """Samples one answer to each question from the model's own distribution, at temperature 1.

    Questions that leave no room for an answer in the context of the model are left out.

    Args:
        model: a causal language model.
        tokenizer: its tokenizer. Questions are put through its chat template, or as `Q:` and `A:` if it has none.
        questions: the questions.
        seed: of the samples.

    Raises:
        InputError: the chat template of the tokenizer fails.
    """
    prompts = prompt_tokens(tokenizer, questions)
    context = context_length(model.config)
    if context is not None:
        prompts = [prompt for prompt in prompts if len(prompt) + _NEW_TOKENS <= context]
    answers = sampled_continuations(model, prompts, new_tokens=_NEW_TOKENS, seed=seed, batch_tokens=_BATCH_TOKENS)
    return [PromptedCompletions(prompt, [answer]) for prompt, answer in zip(prompts, answers, strict=True)]
