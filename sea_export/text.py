"""Text of unknown origin, made safe to show."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch  # heavy, and `--help` needs none of it

__all__ = ["dtype_name", "interval_text", "visible"]

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


def interval_text(interval: Sequence[float] | None, unit: str, *, signed: bool = False) -> str:
    """`45.9 [40.6, 51.3]`: shares in percent, other figures with three decimals; nothing for no interval."""
    if interval is None:
        return ""
    factor, digits = (100, 1) if unit == "%" else (1, 3)
    sign = "+" if signed else ""
    mean, low, high = (f"{factor * value + 0.0:{sign}.{digits}f}" for value in interval)
    return f"{mean} [{low}, {high}]"


def dtype_name(dtype: torch.dtype) -> str:
    """`bfloat16` and its like."""
    return str(dtype).removeprefix("torch.")
