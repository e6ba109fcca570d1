"""Text for users: text of unknown origin made safe to show, intervals, and names of dtypes."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch  # it loads slowly, and `--help` does not need it

__all__ = ["dtype_name", "interval_text", "is_text", "is_utf8", "ranges_text", "visible"]

# Characters that reorder the text around them, so that a reader sees other words than a program reads.
_REORDERING = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def visible(text: str) -> str:
    """The text with escape sequences for every character that would control a terminal or hide other characters.

    Letters of every script, combining marks, emoji, line breaks and tabs do not change.

    Args:
        text: any text.
    """
    return "".join(_escaped(character) if _is_control(character) else character for character in text)


def is_utf8(text: str) -> bool:
    """Whether a text can be written in UTF-8: it has neither half of a character nor a byte that no text has.

    Args:
        text: any text, such as the name of a file.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def is_text(value: object) -> bool:
    """Whether a value is text that a tokenizer reads, and not empty.

    Args:
        value: what a file holds where a text belongs.
    """
    return isinstance(value, str) and bool(value.strip()) and is_utf8(value)


def _is_control(character: str) -> bool:
    if character in "\n\t":
        return False
    return character in _REORDERING or unicodedata.category(character) in ("Cc", "Cs")


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def interval_text(interval: Sequence[float] | None, unit: str, *, signed: bool = False) -> str:
    """An interval as text, such as `45.9 [40.6, 51.3]`.

    Args:
        interval: the mean, the lower and the upper end; None gives an empty text.
        unit: for `%`, shares in [0, 1] are written in percent with one decimal. Other values have three decimals.
        signed: whether positive numbers have a plus sign.
    """
    if interval is None:
        return ""
    factor, digits = (100, 1) if unit == "%" else (1, 3)
    sign = "+" if signed else ""
    mean, low, high = (f"{factor * value + 0.0:{sign}.{digits}f}" for value in interval)
    return f"{mean} [{low}, {high}]"


def dtype_name(dtype: torch.dtype) -> str:
    """The name of a dtype, such as `bfloat16`."""
    return str(dtype).removeprefix("torch.")


def ranges_text(numbers: Iterable[int]) -> str:
    """Whole numbers in ascending order, with a hyphen between the ends of each run, such as `2, 5-7`.

    Args:
        numbers: the numbers, in any order. Those that come twice are told once.
    """
    runs = [
        [number for _, number in run]
        for _, run in groupby(enumerate(sorted(set(numbers))), lambda pair: pair[1] - pair[0])
    ]
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
