"""Two answers to a prompt, and the words in which they differ."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass

__all__ = ["Comparison", "Piece", "compare_answers"]

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

    @property
    def base_text(self) -> str:
        """The answer of the base as a whole."""
        return "".join(piece.text for piece in self.base)

    @property
    def edited_text(self) -> str:
        """The answer of the edited model as a whole."""
        return "".join(piece.text for piece in self.edited)


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
