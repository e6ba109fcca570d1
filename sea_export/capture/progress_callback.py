"""How far work has come: what the library calls, and the simpler function that its users give."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TypeAlias

__all__ = ["Progress", "ProgressCallback", "no_progress", "progress_of", "waiting_of"]

Progress: TypeAlias = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]
"""What the library calls. Is given a stage and the number of items in it, or 0 if they are not counted. Gives a context
whose value is told how many items are done."""

ProgressCallback: TypeAlias = Callable[[str, int, int], None]
"""Is told a stage, how much of it is done, and how much there is to do; 1 for a stage that is not counted."""


def no_progress(stage: str, total: int) -> AbstractContextManager[Callable[[int], None]]:
    """A `Progress` that shows nothing."""
    return nullcontext(lambda count: None)


def progress_of(callback: ProgressCallback | None) -> Progress:
    """What the library calls, made from what a user gives.

    Args:
        callback: see `ProgressCallback`; None for nobody to tell.
    """
    if callback is None:
        return no_progress

    @contextmanager
    def progress(stage: str, total: int) -> Iterator[Callable[[int], None]]:
        done, all_of_it = 0, total or 1

        def advance(count: int) -> None:
            nonlocal done
            done += count
            callback(stage, done, all_of_it)

        callback(stage, 0, all_of_it)
        yield advance
        if total == 0:
            callback(stage, 1, 1)

    return progress


def waiting_of(callback: ProgressCallback | None) -> Callable[[str], AbstractContextManager[object]]:
    """The same for stages that are not counted.

    Args:
        callback: see `progress_of`.
    """
    if callback is None:
        return nullcontext
    progress = progress_of(callback)
    return lambda stage: progress(stage, 0)
