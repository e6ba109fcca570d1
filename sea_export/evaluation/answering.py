"""Greedy answers of a model to prompts, through its chat template where it has one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sea_export.capture.generate import end_tokens, greedy_continuations
from sea_export.demonstrations.prompt_template import prompt_tokens
from sea_export.errors import InputError
from sea_export.model.architecture import position_limit

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["Answer", "answer_prompts"]


@dataclass(frozen=True)
class Answer:
    """What a model answers to a prompt."""

    text: str
    """Without special tokens, and without white space at its ends."""
    tokens: tuple[int, ...]
    """Without the token that ends a text."""
    cut_off: bool
    """Whether it was as long as an answer may be, and had not ended."""


def answer_prompts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    template: str = "auto",
    template_values: Mapping[str, Any] | None = None,
    new_tokens: int = 80,
    batch_tokens: int = 2048,
    progress: Callable[[int], None] | None = None,
) -> list[Answer]:
    """A model's greedy answers.

    Args:
        model: a causal language model.
        tokenizer: its tokenizer.
        prompts: texts.
        template: how a prompt becomes text: `chat`, with the chat template of the tokenizer; `qa`, "Q: prompt", a new
            line, "A:"; `none`, as it is; `auto`, `chat` if there is a chat template and `qa` if not.
        template_values: values that the chat template is given, by name.
        new_tokens: the largest length of an answer, in tokens.
        batch_tokens: about how many tokens are processed at a time.
        progress: told the number of prompts that a batch has answered.

    Raises:
        InputError: the chat template of the tokenizer is missing or fails, or a prompt and its answer do not fit into
            the model's context.
    """
    tokens = prompt_tokens(tokenizer, prompts, template, template_values)
    _check_lengths(tokens, new_tokens, position_limit(model))
    ends = end_tokens(model)
    continuations = greedy_continuations(
        model, tokens, new_tokens=new_tokens, batch_tokens=batch_tokens, progress=progress
    )
    answers = []
    for continuation in continuations:
        # A continuation has at least one token, which ends the text if the answer is empty.
        own = () if continuation[0] in ends else continuation
        text = str(tokenizer.decode(list(own), skip_special_tokens=True)).strip()
        answers.append(Answer(text, own, cut_off=len(own) == new_tokens))
    return answers


def _check_lengths(prompts: Sequence[Sequence[int]], new_tokens: int, context: int | None) -> None:
    for index, prompt in enumerate(prompts):
        if not prompt:
            raise InputError(f"prompt {index + 1}: the tokenizer makes no tokens of it. Change it or remove it.")
        if context is not None and len(prompt) + new_tokens > context:
            raise InputError(
                f"prompt {index + 1}: it has {len(prompt)} tokens and its answer at most {new_tokens}, and the model "
                f"reads {context} together. Shorten it, or lower --new-tokens."
            )
