"""Any multiple-choice questions, in a table of question, choices and label."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sea_export.capture.batching import PromptedCompletions
from sea_export.demonstrations.tables import Row, read_table
from sea_export.errors import InputError
from sea_export.evaluation.metrics import Metric, mean_metric
from sea_export.evaluation.scoring import prompted_completions
from sea_export.text import is_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["PROMPTS", "ChoiceQuestion", "MultipleChoice", "load_multiple_choice"]

PROMPTS = {"qa": "Q: {question}\nA:", "none": "{question}"}
"""How a question becomes a prompt. A choice follows after a space."""


@dataclass(frozen=True)
class ChoiceQuestion:
    """One row."""

    question: str
    choices: tuple[str, ...]
    """At least two."""
    label: int
    """Index of the right one."""


@dataclass(frozen=True)
class MultipleChoice:
    """The benchmark. The answer of a model is the choice with the highest log-likelihood, total or per character."""

    rows: tuple[ChoiceQuestion, ...]
    prompt: str = "qa"
    """One of `PROMPTS`."""

    metric_names = ("accuracy", "accuracy, per character")

    @property
    def label(self) -> str:
        return "multiple-choice" if self.prompt == "qa" else f"multiple-choice:{self.prompt}"

    def items(self, tokenizer: PreTrainedTokenizerBase) -> list[PromptedCompletions]:
        return [
            prompted_completions(
                tokenizer,
                PROMPTS[self.prompt].replace("{question}", row.question),
                [f" {choice}" for choice in row.choices],
            )
            for row in self.rows
        ]

    def metrics(self, items: Sequence[PromptedCompletions], scores: Sequence[Sequence[float]]) -> tuple[Metric, ...]:
        right, right_by_length = [], []
        for row, row_scores in zip(self.rows, scores, strict=True):
            by_length = [score / len(choice) for score, choice in zip(row_scores, row.choices, strict=True)]
            right.append(float(np.argmax(row_scores) == row.label))
            right_by_length.append(float(np.argmax(by_length) == row.label))
        return mean_metric("accuracy", right), mean_metric("accuracy, per character", right_by_length)


def load_multiple_choice(source: str) -> tuple[ChoiceQuestion, ...]:
    """Reads a table with the columns question, choices (a list of texts) and label (index of the right one,
    from 0).

    Args:
        source: see `sea_export.demonstrations.tables.read_table`.

    Raises:
        InputError: the source cannot be read, or is not such a table.
    """
    label, rows = read_table(source)
    if not rows:
        raise InputError(f"{label}: it has no questions. Give a table with the columns question, choices and label.")
    return tuple(_question(row, where) for where, row in rows)


def _question(row: Row, where: str) -> ChoiceQuestion:
    question, choices, label = (row.get(column) for column in ("question", "choices", "label"))
    if not is_text(question):
        raise InputError(f"{where}: its question is missing, empty or not text. Add it, or remove the row.")
    if not isinstance(choices, list) or len(choices) < 2 or not all(map(is_text, choices)):
        raise InputError(f"{where}: its choices are not a list of at least two texts. Correct or remove the row.")
    if not isinstance(label, int) or label not in range(len(choices)):
        raise InputError(
            f"{where}: its label is not the index of a choice. Give the index of the right one, 0 to "
            f"{len(choices) - 1}."
        )
    return ChoiceQuestion(str(question), tuple(choices), label)
