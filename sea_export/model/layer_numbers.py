"""Lists of layers by their numbers, such as `10-20,25`."""

from __future__ import annotations

import re

from sea_export.errors import InputError

__all__ = ["layer_numbers", "layer_range"]

_LARGEST = 100_000
"""No model has as many layers, and no list may take memory."""


def layer_range(part: str) -> range | None:
    """The layers of one part of a list, `25` or `10-20`; None if it is neither.

    Args:
        part: what the user wrote.
    """
    match = re.fullmatch(r"\s*(\d{1,9})(?:-(\d{1,9}))?\s*", part)
    if not match or int(match[2] or match[1]) < int(match[1]):
        return None
    return range(int(match[1]), int(match[2] or match[1]) + 1)


def layer_numbers(text: str, option: str) -> frozenset[int]:
    """The layers of a list, counted from 0.

    Args:
        text: what the user wrote.
        option: the option that it was written for, with its hyphens.

    Raises:
        InputError: it is no such list.
    """
    ranges = [layer_range(part) for part in text.split(",")]
    if not all(found and found[-1] < _LARGEST for found in ranges):
        raise InputError(f"{option}: {text!r} is not understood. Write layers as a list of numbers, such as 10-20,25.")
    return frozenset(layer for found in ranges if found for layer in found)
