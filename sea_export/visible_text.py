"""Text of unknown origin, made safe to show."""

from __future__ import annotations

import unicodedata

__all__ = ["visible"]

# Characters that reorder what stands around them: a reader sees other words than a program reads.
_REORDERING = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def visible(text: str) -> str:
    """The text with every character that would command a terminal, or hide others, written as an escape sequence.

    Letters of every script, marks that combine, emoji, line breaks and tabs stay what they are.

    Args:
        text: any text.
    """
    return "".join(_escaped(character) if _commands(character) else character for character in text)


def _commands(character: str) -> bool:
    if character in "\n\t":
        return False
    return character in _REORDERING or unicodedata.category(character) in ("Cc", "Cs")


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
