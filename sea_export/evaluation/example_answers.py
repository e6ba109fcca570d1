"""What an edited model says: a few answers before and after, chosen by a rule that shows the worst one.

The prompts are built in, so that no text of a user's own gets into a model card. The answers are sorted by how unlikely
the unedited base finds what the edited model says, loops and empty answers last. Shown are the last one, the one in the
middle, and the first one in which the edit changes anything.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

from sea_export.capture.batching import PromptedCompletions
from sea_export.capture.offloaded import StoredModel
from sea_export.capture.opened_model import OpenedModel
from sea_export.demonstrations.prompt_template import prompt_tokens
from sea_export.edit.spectral_edit import SpectralEdit
from sea_export.evaluation.answering import answer_prompts
from sea_export.evaluation.benchmark import Progress, no_progress
from sea_export.evaluation.prompts import load_prompts
from sea_export.evaluation.scoring import completion_log_likelihoods
from sea_export.model.architecture import position_limit

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["ANSWER_TOKENS", "ExampleAnswer", "chosen_examples", "example_answers", "with_examples"]

ANSWER_TOKENS = 60
"""The largest length of an answer, in tokens."""


@dataclass(frozen=True)
class ExampleAnswer:
    """A prompt with the answers of the base and of the edited model.

    Attributes:
        prompt: the prompt.
        base: the answer of the base.
        base_marks: see `Answer.marks`.
        edited: the answer of the edited model.
        edited_marks: the same of it.
        surprise: how unlikely the base finds the edited answer, in nats per token; None if it is empty, or
            has no likelihood.
    """

    prompt: str
    base: str
    base_marks: tuple[str, ...]
    edited: str
    edited_marks: tuple[str, ...]
    surprise: float | None

    @property
    def changed(self) -> bool:
        """Whether the edit changes the answer."""
        return self.base != self.edited


def with_examples(edit: SpectralEdit, opened: OpenedModel, progress: Progress = no_progress) -> SpectralEdit:
    """The edit with `examples` in its provenance, as far as the model can answer: it has to be in memory as a whole.

    Args:
        edit: the edit.
        opened: its base.
        progress: shows the progress.
    """
    model = opened.model
    if isinstance(model, StoredModel):
        return edit
    prompts = load_prompts(None)
    with progress("Answers before and after", 2 * len(prompts)) as advance:
        answers = example_answers(model, opened.base.tokenizer, edit, prompts)
        advance(2 * len(prompts))
    if not answers:
        return edit
    record = {"prompts": len(answers), "shown": [asdict(one) for one in chosen_examples(answers)]}
    return replace(edit, provenance={**edit.provenance, "examples": record})


def example_answers(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, edit: SpectralEdit, prompts: Sequence[str]
) -> list[ExampleAnswer]:
    """The answers of a model to prompts, before and after an edit.

    Args:
        model: the base. The edit is applied to it, and taken off again.
        tokenizer: its tokenizer. Its chat template is used, if it has one.
        edit: the edit.
        prompts: the prompts. Those that leave no room for an answer in the model's context are left out.

    Raises:
        InputError: the chat template fails.
    """
    context = position_limit(model)
    tokens = prompt_tokens(tokenizer, prompts)
    fitting = [
        (prompt, own)
        for prompt, own in zip(prompts, tokens, strict=True)
        if own and (context is None or len(own) + ANSWER_TOKENS <= context)
    ]
    if not fitting:
        return []
    texts = [prompt for prompt, _ in fitting]
    base = answer_prompts(model, tokenizer, texts, new_tokens=ANSWER_TOKENS)
    with edit.apply(model):
        edited = answer_prompts(model, tokenizer, texts, new_tokens=ANSWER_TOKENS)
    asked = [
        PromptedCompletions(own, [answer.tokens])
        for (_, own), answer in zip(fitting, edited, strict=True)
        if answer.tokens
    ]
    likelihoods = iter(completion_log_likelihoods(model, asked)) if asked else iter(())
    return [
        ExampleAnswer(
            prompt,
            before.text,
            before.marks,
            after.text,
            after.marks,
            _surprise(next(likelihoods)[0], len(after.tokens)) if after.tokens else None,
        )
        for prompt, before, after in zip(texts, base, edited, strict=True)
    ]


def _surprise(log_likelihood: float, length: int) -> float | None:
    return -log_likelihood / length if math.isfinite(log_likelihood) else None


def chosen_examples(answers: Sequence[ExampleAnswer]) -> list[ExampleAnswer]:
    """At most three of some answers, by the rule of this module, the worst one last.

    Args:
        answers: at least one.
    """
    ordered = sorted(answers, key=_badness)
    changed = [one for one in ordered if one.changed] or ordered
    picked = (changed[0], changed[len(changed) // 2], changed[-1])
    return list(dict.fromkeys(picked))


def _badness(answer: ExampleAnswer) -> tuple[bool, float]:
    return "loops" in answer.edited_marks, math.inf if answer.surprise is None else answer.surprise
