"""A judge that is a model on this machine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sea_export.capture.batching import PromptedCompletions
from sea_export.demonstrations.prompt_template import prompt_tokens
from sea_export.evaluation.scoring import completion_log_likelihoods, prompted_completions

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["LocalJudge"]

# So many prompts are judged before their verdicts are given.
_CHUNK = 16
_WORDS = ("Yes", "yes", "No", "no")


@dataclass(frozen=True)
class LocalJudge:
    """Compares the likelihoods of the replies yes and no, so that there is always a verdict, and always the same."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    template_values: Mapping[str, Any]
    batch_tokens: int = 2048

    def verdicts(self, prompts: Sequence[str]) -> Iterator[bool | None]:
        for start in range(0, len(prompts), _CHUNK):
            items = self._items(prompts[start : start + _CHUNK])
            for scores in completion_log_likelihoods(self.model, items, batch_tokens=self.batch_tokens):
                yes, no = np.logaddexp(scores[0], scores[1]), np.logaddexp(scores[2], scores[3])
                yield bool(yes > no)

    def _items(self, prompts: Sequence[str]) -> list[PromptedCompletions]:
        """Prompts with the ways to write yes and no, through the chat template if there is one."""
        if getattr(self.tokenizer, "chat_template", None) is None:
            words = [f" {word}" for word in _WORDS]
            return [prompted_completions(self.tokenizer, f"{prompt}\nReply:", words) for prompt in prompts]
        tokens = prompt_tokens(self.tokenizer, prompts, "chat", self.template_values)
        replies = [self.tokenizer(word, add_special_tokens=False)["input_ids"] for word in _WORDS]
        return [PromptedCompletions(prompt, replies) for prompt in tokens]
