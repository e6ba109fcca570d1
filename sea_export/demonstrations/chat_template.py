"""The chat template of a tokenizer: a program that comes with a model, and may fail in every way or never end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sea_export.demonstrations.limited_run import Unfinished, run_limited
from sea_export.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Message", "chat_texts", "conversation_texts"]

Message = Mapping[str, str]
"""What one side says: `role`, which is `system`, `user` or `assistant`, and `content`."""

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
    conversations = [({"role": "user", "content": prompt},) for prompt in prompts]
    return conversation_texts(tokenizer, conversations, template_values)


def conversation_texts(
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[Sequence[Message]],
    template_values: Mapping[str, Any] | None = None,
) -> list[str]:
    """Conversations as the chat template of a tokenizer puts them, up to where the assistant answers.

    Args:
        tokenizer: the tokenizer.
        conversations: the messages of each, of which the last one is the user's.
        template_values: values that the template is given, by name.

    Returns:
        One text for each conversation, special tokens included.

    Raises:
        InputError: there is no chat template, or it fails, or takes too much time or memory.
    """
    if getattr(tokenizer, "chat_template", None) is None:
        raise InputError("--template: the tokenizer has no chat template. Choose --template qa.")

    def render() -> list[str]:
        return [_rendered(tokenizer, messages, template_values or {}) for messages in conversations]

    try:
        texts: list[str] = run_limited(render, _SECONDS + len(conversations) // _PROMPTS_A_SECOND)
    except Unfinished as error:
        raise InputError(
            f"--template: the chat template of the tokenizer fails ({error}). Choose --template qa."
        ) from error
    return texts


def _rendered(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], template_values: Mapping[str, Any]
) -> str:
    own = [dict(message) for message in messages]
    text = str(tokenizer.apply_chat_template(own, tokenize=False, add_generation_prompt=True, **template_values))
    given = sum(len(message["content"]) for message in messages)
    if len(text) > _MOST_CHARACTERS + _TIMES_THE_PROMPT * given:
        raise ValueError(f"it makes {len(text)} characters of a prompt of {given}")
    text.encode()  # raises for half characters
    return text
