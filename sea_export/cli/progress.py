"""Progress bars that count."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

__all__ = ["counting_progress"]

_errors = Console(stderr=True, highlight=False, markup=False)


@contextmanager
def counting_progress(description: str, total: int) -> Iterator[Callable[[int], None]]:
    """A progress bar that counts to `total`; its value is told how many more are done."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=_errors, transient=True) as progress:
        task = progress.add_task(description, total=total)
        yield lambda count: progress.advance(task, count)
