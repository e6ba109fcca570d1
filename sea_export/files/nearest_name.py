"""The name that a user probably meant, for messages about names that do not exist."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path

from sea_export.errors import InputError

__all__ = ["meant", "missing", "neighbours"]

_LEAST_SIMILARITY = 0.75
_MOST_NEIGHBOURS = 10_000


def missing(path: Path, remedy: str = "Check the path.") -> InputError:
    """The error for a file or a directory that does not exist.

    Args:
        path: where it should be.
        remedy: what to do, as a sentence.
    """
    return InputError(f"{path}: there is no such file or directory{meant(str(path), neighbours(path))}. {remedy}")


def neighbours(path: Path) -> tuple[str, ...]:
    """The paths beside one that does not exist, written as the user wrote it.

    Args:
        path: a path, relative or absolute.
    """
    try:
        names = [entry.name for _, entry in zip(range(_MOST_NEIGHBOURS), path.parent.iterdir(), strict=False)]
    except OSError:  # there is no such folder either, or nobody may look into it
        return ()
    return tuple(str(path.parent / name) for name in names if not name.startswith("."))


def meant(name: str, known: Iterable[str]) -> str:
    """A remark that asks whether the nearest of some names was meant, after a space; empty if none is near.

    Args:
        name: what the user wrote. Letters of either case are alike, and `NAME` is like `ORG/NAME`.
        known: names that exist.
    """
    best = max(sorted(known), key=lambda one: _similarity(name, one), default="")
    return f" (did you mean {best}?)" if best and _similarity(name, best) >= _LEAST_SIMILARITY else ""


def _similarity(name: str, other: str) -> float:
    """How like each other two names are, from 0 to 1: as the parts between slashes that are the least alike."""
    parts, others = (text.lower().rstrip("/").split("/") for text in (name, other))
    if len(parts) == 1:
        others = others[-1:]
    if len(parts) != len(others):
        return 0.0
    pairs = zip(parts, others, strict=True)
    return min(difflib.SequenceMatcher(None, *pair, autojunk=False).ratio() for pair in pairs)
