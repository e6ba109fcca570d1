"""Lists of layers as a user writes them, such as `last:6,10-20`: what they mean for a model, and for an edit."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from sea_export.errors import InputError

__all__ = ["LayerChoice", "kept_by_signature", "layers_of_edit"]


@dataclass(frozen=True)
class LayerChoice:
    """Which decoder layers are edited: what `--layers` means for a number of layers."""

    candidates: tuple[int, ...]
    """Layers to capture."""
    listed: bool = False
    """Whether every layer was asked for by its number."""

    @classmethod
    def parse(cls, text: str, count: int) -> LayerChoice:
        """Reads `all`, `signature:K`, or a list of ranges such as `last:6,first:2,10-20,25`.

        Args:
            text: what the user wrote. K is a number of layers, or a share of them: `60%`.
            count: the model's number of layers.

        Raises:
            InputError: it is none of these forms, or names a layer that does not exist.
        """
        kept = kept_by_signature(text, count)
        if kept is not None:
            _check_number(kept, text, count)
        if text == "all" or kept is not None:
            return cls(tuple(range(count)))
        parts = [_part(part, text, count) for part in text.split(",")]
        listed = not any(":" in part for part in text.split(","))
        return cls(tuple(sorted({layer for part in parts for layer in part})), listed)


def _part(part: str, text: str, count: int) -> range:
    """The layers of one part of a list."""
    if match := re.fullmatch(r"\s*(last|first):(\d+)(%?)\s*", part):
        number = _number(match[2], match[3], count)
        _check_number(number, part, count)
        return range(count - number, count) if match[1] == "last" else range(number)
    match = re.fullmatch(r"\s*(\d{1,9})(?:-(\d{1,9}))?\s*", part)
    if not match or int(match[2] or match[1]) < int(match[1]):
        raise InputError(
            f"--layers: {text!r} is not understood at {part!r}. Write all, last:K, first:K, signature:K, or a "
            "list such as last:6,10-20,25."
        )
    last = int(match[2] or match[1])
    if last >= count:
        raise InputError(f"--layers: {text} names layer {last}, which does not exist. Choose 0 to {count - 1}.")
    return range(int(match[1]), last + 1)


def kept_by_signature(text: str, count: int) -> int | None:
    """How many layers `signature:K` keeps.

    Args:
        text: what the user wrote.
        count: the number of candidate layers.

    Returns:
        their number; None for the other forms, which keep all candidates.
    """
    match = re.fullmatch(r"signature:(\d+)(%?)", text)
    return None if match is None else _number(match[1], match[2], count)


def _number(digits: str, unit: str, count: int) -> int:
    """K layers. A share of `count` layers is at least one layer."""
    return max(1, round(count * int(digits) / 100)) if unit else int(digits)


def _check_number(number: int, text: str, count: int) -> None:
    if not 1 <= number <= count:
        raise InputError(f"--layers: {text} asks for {number} layers, and the model has {count}. Choose 1 to {count}.")


def layers_of_edit(edited: Sequence[int], text: str, option: str = "--layers") -> tuple[int, ...]:
    """Those edited layers that a list names.

    Args:
        edited: the numbers of the decoder layers in which the edit changes anything, sorted.
        text: `all`, or a list such as `last:6,10-20`, where the layers end with the last edited one.
        option: the option that the list is the value of, for messages.

    Raises:
        InputError: the list is not understood, or names no edited layer.
    """
    if not edited:
        raise InputError(f"{option}: the edit changes no decoder layer, so that there is none to choose. Leave it out.")
    if text.startswith("signature:"):
        raise InputError(f"{option}: {text} chooses layers in a fit. Write all, last:K, first:K, or a list of layers.")
    try:
        named = LayerChoice.parse(text, edited[-1] + 1).candidates
    except InputError as error:
        raise InputError(str(error).replace("--layers", option, 1)) from error
    found = tuple(layer for layer in edited if layer in named)
    if not found:
        raise InputError(
            f"{option}: {text} has no layer that the edit edits. Choose from {', '.join(map(str, edited))}."
        )
    return found
