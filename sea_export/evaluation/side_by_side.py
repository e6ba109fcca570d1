"""The same prompts answered by two models, and the words in which the answers differ."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from sea_export.evaluation.answering import answer_prompts
from sea_export.evaluation.early_checks import check_comparison
from sea_export.evaluation.evaluation_options import CompareOptions
from sea_export.evaluation.generation_options import template_values
from sea_export.evaluation.loaded_model import open_loaded_model
from sea_export.evaluation.prompts import load_prompts
from sea_export.model.run_options import RunOptions

__all__ = [
    "Comparison",
    "ModelComparison",
    "Piece",
    "compare_answers",
    "compare_models",
]


@dataclass(frozen=True)
class Piece:
    """A part of an answer."""

    text: str
    changed: bool
    """Whether the other answer has other words there."""


@dataclass(frozen=True)
class Comparison:
    """A prompt and its two answers, in pieces."""

    prompt: str
    base: tuple[Piece, ...]
    edited: tuple[Piece, ...]

    @property
    def differs(self) -> bool:
        """Whether the two answers differ."""
        return any(piece.changed for piece in (*self.base, *self.edited))


@dataclass(frozen=True)
class ModelComparison:
    """The answers of a base and of an edited model to the same prompts.

    Attributes:
        base: the name of the base.
        edited: the name of the edited model.
        answers: one for each prompt.
    """

    base: str
    edited: str
    answers: tuple[Comparison, ...]


def compare_models(
    base: str,
    edited: str,
    options: CompareOptions,
    run: RunOptions,
    waiting: Callable[[str], AbstractContextManager[object]] = nullcontext,
) -> ModelComparison:
    """Answers the same prompts with two models, one after the other.

    Args:
        base: a Hub id, a directory, or a `.gguf` file.
        edited: the same; also an export of any format.
        options: the prompts, and how they are answered. The page that they name is checked, but not written.
        run: how the models are opened.
        waiting: is told what goes on; its context is open meanwhile.

    Raises:
        InputError: a model, the prompts or the page is not usable.
    """
    check_comparison(base, edited, options, run)
    prompts = list(options.own_prompts)
    if options.prompts is not None or not prompts:
        prompts += load_prompts(options.prompts)
    answers: list[list[str]] = []
    names: list[str] = []
    for model in (base, edited):
        with open_loaded_model(model, run) as loaded, waiting(f"{loaded.name} answers"):
            names.append(loaded.name)
            found = answer_prompts(
                loaded.model,
                loaded.tokenizer,
                prompts,
                template=options.template,
                template_values=template_values(options.chat_template_kwargs),
                new_tokens=options.new_tokens,
            )
            answers.append([answer.text for answer in found])
    compared = tuple(compare_answers(*row) for row in zip(prompts, *answers, strict=True))
    return ModelComparison(base=names[0], edited=names[1], answers=compared)


def compare_answers(prompt: str, base: str, edited: str) -> Comparison:
    """Finds the words in which two answers differ."""
    words = [re.findall(r"\S+\s*", text) for text in (base, edited)]
    bare = [[word.rstrip() for word in own] for own in words]
    pieces: tuple[list[Piece], list[Piece]] = ([], [])
    matcher = difflib.SequenceMatcher(None, bare[0], bare[1], autojunk=False)
    for kind, *spans in matcher.get_opcodes():
        for own, found, (start, end) in zip(words, pieces, (spans[:2], spans[2:]), strict=True):
            if end > start:
                found.append(Piece("".join(own[start:end]), changed=kind != "equal"))
    return Comparison(prompt, tuple(pieces[0]), tuple(pieces[1]))
