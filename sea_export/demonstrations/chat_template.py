"""The chat template of a tokenizer: a program that comes with a model, and may fail in every way or never end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sea_export.demonstrations.limited_run import Unfinished, run_limited
from sea_export.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["chat_texts"]

_SECONDS, _PROMPTS_A_SECOND = 5, 100
_MOST_CHARACTERS, _TIMES_THE_PROMPT = 1_000_000, 10


def chat_texts(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], template_values: Mapping[str, Any] | None = None
) -> list[str]:
    """Prompts as the chat template of a tokenizer puts them, up to where the assistant answers.

    Args:
        tokenizer: the tokenizer.
        prompts: the prompts.
        template_values: values that the template is given, by name.

    Returns:
        One text for each prompt, special tokens included.

    Raises:
        InputError: there is no chat template, or it fails, or takes too much time or memory.
    """
    if getattr(tokenizer, "chat_template", None) is None:
        raise InputError("--template: the tokenizer has no chat template. Choose --template qa.")

    def render() -> list[str]:
        return [_rendered(tokenizer, prompt, template_values or {}) for prompt in prompts]

    try:
        texts: list[str] = run_limited(render, _SECONDS + len(prompts) // _PROMPTS_A_SECOND)
    except Unfinished as error:
        raise InputError(
            f"--template: the chat template of the tokenizer fails ({error}). Choose --template qa."
        ) from error
    return texts


def _rendered(tokenizer: PreTrainedTokenizerBase, prompt: str, template_values: Mapping[str, Any]) -> str:
    conversation = [{"role": "user", "content": prompt}]
    text = str(
        tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True, **template_values)
    )
    if len(text) > _MOST_CHARACTERS + _TIMES_THE_PROMPT * len(prompt):
        raise ValueError(f"it makes {len(text)} characters of a prompt of {len(prompt)}")
    text.encode()  # raises for half characters
    return text
