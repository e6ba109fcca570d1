"""The text on which the damage of an edit is measured: prose, and the base's own answers to ordinary questions.

Prose alone can be dodged: an edit may keep the predictions of prose and ruin answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sea_export.capture.batching import PromptedCompletions
from sea_export.capture.own_answers import own_answers
from sea_export.capture.whole_text import whole_text
from sea_export.model.architecture import context_length

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["UnrelatedText", "prose_items", "unrelated_text"]


@dataclass(frozen=True)
class UnrelatedText:
    """Prompts with one completion each. The tokens of completions count."""

    prose: tuple[PromptedCompletions, ...]
    answers: tuple[PromptedCompletions, ...]
    """Those of the base; empty where it cannot generate."""

    @property
    def items(self) -> tuple[PromptedCompletions, ...]:
        """All of them, prose first."""
        return (*self.prose, *self.answers)

    @property
    def lengths(self) -> list[int]:
        """How many tokens of each item count."""
        return [len(item.completions[0]) for item in self.items]

    def part(self, tokens: int) -> UnrelatedText:
        """The first items of either kind with about so many counted tokens."""
        return UnrelatedText(_first(self.prose, tokens), _first(self.answers, tokens))

    def without(self, part: UnrelatedText) -> UnrelatedText:
        """All items but those of a part.

        Args:
            part: what `part` gave.
        """
        return UnrelatedText(self.prose[len(part.prose) :], self.answers[len(part.answers) :])


def unrelated_text(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    questions: Sequence[str],
) -> UnrelatedText:
    """Reads prose, and has the base answer questions.

    Args:
        model: the base.
        tokenizer: its tokenizer.
        texts: passages of prose. What does not fit into the context of the model is cut off.
        questions: what the base answers.

    Raises:
        InputError: a passage has no tokens, or see `sea_export.capture.whole_text.whole_text`.
    """
    return UnrelatedText(tuple(prose_items(model, tokenizer, texts)), tuple(own_answers(model, tokenizer, questions)))


def prose_items(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]
) -> list[PromptedCompletions]:
    """Passages as tokens, cut to the context of the model: see `unrelated_text`."""
    context = context_length(model.config)
    whole = [whole_text(tokenizer, text) for text in texts]
    if context is None:
        return whole
    return [PromptedCompletions(one.prompt, [one.completions[0][: context - len(one.prompt)]]) for one in whole]


def _first(items: Sequence[PromptedCompletions], tokens: int) -> tuple[PromptedCompletions, ...]:
    chosen: list[PromptedCompletions] = []
    for item in items:
        if sum(len(one.completions[0]) for one in chosen) >= tokens:
            break
        chosen.append(item)
    return tuple(chosen)
