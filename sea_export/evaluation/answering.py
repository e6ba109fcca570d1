"""Greedy answers of a model to prompts, through its chat template where it has one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sea_export.capture.generate import end_tokens, greedy_continuations
from sea_export.demonstrations.prompt_template import prompt_tokens
from sea_export.errors import InputError
from sea_export.evaluation.answers import is_loop
from sea_export.model.architecture import position_limit

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["Answer", "answer_prompts", "answer_tokens"]


@dataclass(frozen=True)
class Answer:
    """What a model answers to a prompt."""

    text: str
    """Without special tokens, and without white space at its ends."""
    tokens: tuple[int, ...]
    """Without the token that ends a text."""
    cut_off: bool
    """Whether it was as long as an answer may be, and had not ended."""

    @property
    def marks(self) -> tuple[str, ...]:
        """What is told beside it: `loops` if it repeats itself to its end, `cut off` if it had not ended."""
        found = {"loops": is_loop(self.tokens), "cut off": self.cut_off}
        return tuple(mark for mark, is_so in found.items() if is_so)


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
    continuations = greedy_continuations(
        model, tokens, new_tokens=new_tokens, batch_tokens=batch_tokens, progress=progress
    )
    return [_answer(model, tokenizer, continuation, new_tokens) for continuation in continuations]


def answer_tokens(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: Sequence[int],
    *,
    new_tokens: int,
    goes_on: Callable[[str], bool],
) -> Answer | None:
    """A model's greedy answer to one prompt, which is watched as it grows.

    Args:
        model: a causal language model.
        tokenizer: its tokenizer.
        prompt: the tokens after which the answer begins.
        new_tokens: the largest length of the answer, in tokens. It is shorter where the model's context ends.
        goes_on: told the text of the answer after each token; it says whether another one is wanted.

    Returns:
        The answer; None if `goes_on` has ended it.

    Raises:
        InputError: the prompt is empty, or leaves no room for an answer in the model's context.
    """
    context = position_limit(model)
    longest = new_tokens if context is None else min(new_tokens, context - len(prompt))
    if not prompt:
        raise InputError("the prompt: the tokenizer makes no tokens of it. Write something else.")
    if longest < 1:
        raise InputError(
            f"the conversation: it has {len(prompt)} tokens, and the model reads {context} with the answer. Begin a "
            "new one."
        )
    wanted = True

    def watched(tokens: Sequence[int]) -> bool:
        nonlocal wanted
        wanted = wanted and goes_on(_text(tokenizer, tokens))
        return wanted

    (continuation,) = greedy_continuations(model, [prompt], new_tokens=longest, goes_on=watched)
    return _answer(model, tokenizer, continuation, longest) if wanted else None


def _answer(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, continuation: tuple[int, ...], new_tokens: int
) -> Answer:
    # A continuation has at least one token, which ends the text if the answer is empty.
    own = () if continuation[0] in end_tokens(model) else continuation
    return Answer(_text(tokenizer, own), own, cut_off=len(own) == new_tokens)


def _text(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int]) -> str:
    return str(tokenizer.decode(list(tokens), skip_special_tokens=True)).strip()


def _check_lengths(prompts: Sequence[Sequence[int]], new_tokens: int, context: int | None) -> None:
    for index, prompt in enumerate(prompts):
        if not prompt:
            raise InputError(f"prompt {index + 1}: the tokenizer makes no tokens of it. Change it or remove it.")
        if context is not None and len(prompt) + new_tokens > context:
            raise InputError(
                f"prompt {index + 1}: it has {len(prompt)} tokens and its answer at most {new_tokens}, and the model "
                f"reads {context} together. Shorten it, or lower --new-tokens."
            )
