"""Two answers to a prompt, and the words in which they differ."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass

__all__ = ["Comparison", "Piece", "compare_answers"]


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

    @property
    def base_text(self) -> str:
        """The answer of the base as a whole."""
        return "".join(piece.text for piece in self.base)

    @property
    def edited_text(self) -> str:
        """The answer of the edited model as a whole."""
        return "".join(piece.text for piece in self.edited)


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
