"""Prompts that a model is to answer, put into its chat template where it has one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError

from sea_export.errors import InputError, first_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["chat_text", "prompt_tokens"]


def prompt_tokens(
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    template: str = "auto",
    template_values: Mapping[str, Any] | None = None,
) -> list[int]:
    """The tokens of a prompt, after which an answer begins.

    Args:
        tokenizer: the tokenizer.
        prompt: the prompt.
        template: how it becomes text: `chat`, with the chat template of the tokenizer; `qa`, "Q: prompt", a new line,
            "A:"; `none`, as it is; `auto`, `chat` if there is a chat template and `qa` if not.
        template_values: values that the chat template is given, by name.

    Raises:
        InputError: the chat template of the tokenizer is missing or fails.
    """
    if template == "auto":
        template = "qa" if getattr(tokenizer, "chat_template", None) is None else "chat"
    if template == "chat":
        text = chat_text(tokenizer, prompt, template_values)
        chat: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
        return chat
    plain: list[int] = tokenizer(f"Q: {prompt}\nA:" if template == "qa" else prompt)["input_ids"]
    return plain


def chat_text(tokenizer: PreTrainedTokenizerBase, prompt: str, template_values: Mapping[str, Any] | None = None) -> str:
    """A prompt as the chat template of the tokenizer puts it, special tokens included."""
    if getattr(tokenizer, "chat_template", None) is None:
        raise InputError("--template: the tokenizer has no chat template. Choose --template qa.")
    try:
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}],
            tokenize=False,
            add_generation_prompt=True,
            **(template_values or {}),
        )
    except (TemplateError, ValueError, TypeError) as error:
        raise InputError(
            f"--template: the chat template of the tokenizer fails ({first_line(error)}). Choose --template qa."
        ) from error
    return str(text)
