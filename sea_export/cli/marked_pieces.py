"""Answers on a terminal, with marks at the words in which they differ."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from rich.text import Text

from sea_export.cli.terminal import console
from sea_export.text import visible

if TYPE_CHECKING:
    from sea_export.evaluation.answer_pieces import Piece

__all__ = ["marked"]


def marked(pieces: Iterable[Piece], marks: Iterable[str], color: str, before: str, after: str) -> Text:
    """An answer whose own words are underlined and coloured on a terminal, and in brackets elsewhere.

    Args:
        pieces: those of the answer.
        marks: what is told of the answer, such as `loops`.
        color: the colour of its own words.
        before: what stands before its own words where there is no terminal.
        after: what stands behind them there.
    """
    text = Text()
    for piece in pieces:
        shown = visible(piece.text)
        if not piece.changed:
            text.append(shown)
        elif console.is_terminal:
            text.append(shown, style=f"bold underline {color}")
        else:
            words = shown.rstrip()
            text.append(f"{before}{words}{after}{shown[len(words) :]}")
    for mark in marks:
        text.append(f" [{mark}]", style="yellow")
    return text
