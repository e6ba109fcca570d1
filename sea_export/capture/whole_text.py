"""Texts that are scored from their first token."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sea_export.capture.batching import PromptedCompletions
from sea_export.demonstrations.tokenize import tokenize_text
from sea_export.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["whole_text"]


def whole_text(tokenizer: PreTrainedTokenizerBase, text: str) -> PromptedCompletions:
    """A text whose tokens are all scored: the one completion after the special tokens that the tokenizer puts first.

    If it puts none there, the text follows its begin-of-text token, or else its end-of-text token.

    Raises:
        InputError: the tokenizer has neither of the two tokens, or see
            `sea_export.demonstrations.tokenize.tokenize_text`.
    """
    before, tokens = tokenize_text(tokenizer, text)
    if not before:
        first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
        if first is None:
            raise InputError(
                "tokenizer: it has no special token with which a text could begin, so that a whole text cannot be "
                "scored. Leave out crows-pairs and damage, or give a tokenizer with a begin-of-text token."
            )
        before = (first,)
    return PromptedCompletions(before, [tokens])
