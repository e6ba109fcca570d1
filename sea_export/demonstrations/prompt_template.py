"""Prompts that a model is to answer, put into its chat template where it has one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sea_export.demonstrations.chat_template import chat_texts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["prompt_tokens"]


def prompt_tokens(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    template: str = "auto",
    template_values: Mapping[str, Any] | None = None,
) -> list[list[int]]:
    """The tokens of prompts, after which an answer begins.

    Args:
        tokenizer: the tokenizer.
        prompts: the prompts.
        template: how a prompt becomes text: `chat`, with the chat template of the tokenizer; `qa`, "Q: prompt", a new
            line, "A:"; `none`, as it is; `auto`, `chat` if there is a chat template and `qa` if not.
        template_values: values that the chat template is given, by name.

    Raises:
        InputError: the chat template of the tokenizer is missing or fails.
    """
    if template == "auto":
        template = "qa" if getattr(tokenizer, "chat_template", None) is None else "chat"
    if template == "chat":
        texts = chat_texts(tokenizer, prompts, template_values)
        return [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    return [tokenizer(f"Q: {prompt}\nA:" if template == "qa" else prompt)["input_ids"] for prompt in prompts]
