"""The same prompts answered by two models, and the words in which the answers differ."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from sea_export.evaluation.answering import Answer, answer_prompts
from sea_export.evaluation.early_checks import check_comparison
from sea_export.evaluation.evaluation_options import CompareOptions
from sea_export.evaluation.generation_options import template_values
from sea_export.evaluation.loaded_model import LoadedModel, open_loaded_model
from sea_export.evaluation.prompts import load_prompts
from sea_export.evaluation.run_time_edit import applied, edit_name, is_edit, load_run_time_edit
from sea_export.model.run_options import RunOptions

__all__ = [
    "Comparison",
    "ModelComparison",
    "Piece",
    "compare_answers",
    "compare_models",
]

_LEAST_IN_COMMON = 0.5


@dataclass(frozen=True)
class Piece:
    """A part of an answer."""

    text: str
    changed: bool
    """Whether the other answer has other words there."""


@dataclass(frozen=True)
class Comparison:
    """A prompt and its two answers, in pieces.

    Attributes:
        prompt: the prompt.
        base: the answer of the base.
        edited: the answer of the edited model.
        differs: whether the two have different words.
        alike: whether they have at least half of their words in common. Of other answers no piece is marked as
            changed, because nearly all of them would be.
        base_marks: see `sea_export.evaluation.answering.Answer.marks`.
        edited_marks: the same of the other answer.
    """

    prompt: str
    base: tuple[Piece, ...]
    edited: tuple[Piece, ...]
    differs: bool
    alike: bool
    base_marks: tuple[str, ...] = ()
    edited_marks: tuple[str, ...] = ()


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
        edited: the same; also an export of any format, or the directory of an edit, which is applied to the base.
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

    def answered(loaded: LoadedModel, name: str) -> list[Answer]:
        with waiting(f"{name} answers"):
            return answer_prompts(
                loaded.model,
                loaded.tokenizer,
                prompts,
                template=options.template,
                template_values=template_values(options.chat_template_kwargs),
                new_tokens=options.new_tokens,
            )

    if is_edit(edited):
        edit, edited_name = (
            load_run_time_edit(Path(edited), options.strength),
            edit_name(Path(edited), options.strength),
        )
        with open_loaded_model(base, run) as loaded:
            base_name, before = loaded.name, answered(loaded, loaded.name)
            with applied(edit, loaded):
                after = answered(loaded, edited_name)
    else:
        with open_loaded_model(base, run) as loaded:
            base_name, before = loaded.name, answered(loaded, loaded.name)
        with open_loaded_model(edited, run) as loaded:
            edited_name, after = loaded.name, answered(loaded, loaded.name)
    compared = tuple(
        compare_answers(prompt, one.text, other.text, one.marks, other.marks)
        for prompt, one, other in zip(prompts, before, after, strict=True)
    )
    return ModelComparison(base=base_name, edited=edited_name, answers=compared)


def compare_answers(
    prompt: str,
    base: str,
    edited: str,
    base_marks: tuple[str, ...] = (),
    edited_marks: tuple[str, ...] = (),
) -> Comparison:
    """Finds the words in which two answers differ. Words of the same letters are equal, whatever their case and marks.

    Args:
        prompt: what was asked.
        base: the answer of the base.
        edited: the answer of the edited model.
        base_marks: see `sea_export.evaluation.answering.Answer.marks`.
        edited_marks: the same of the other answer.
    """
    words = [re.findall(r"\S+\s*", text) for text in (base, edited)]
    bare = [[word.rstrip() for word in own] for own in words]
    cores = [[_core(word) for word in own] for own in bare]
    matcher = difflib.SequenceMatcher(None, cores[0], cores[1], autojunk=False)
    alike = matcher.ratio() >= _LEAST_IN_COMMON
    pieces: tuple[list[Piece], list[Piece]] = ([], [])
    for kind, *spans in matcher.get_opcodes():
        for own, found, (start, end) in zip(words, pieces, (spans[:2], spans[2:]), strict=True):
            if end > start:
                found.append(Piece("".join(own[start:end]), changed=alike and kind != "equal"))
    return Comparison(
        prompt,
        tuple(pieces[0]),
        tuple(pieces[1]),
        differs=bare[0] != bare[1],
        alike=alike,
        base_marks=base_marks,
        edited_marks=edited_marks,
    )


def _core(word: str) -> str:
    """A word without its case and the marks at its ends; the word itself if it has nothing else."""
    return re.sub(r"^\W+|\W+$", "", word).casefold() or word
