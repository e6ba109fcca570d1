"""Progress bars that count."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import MofNCompleteColumn

from sea_export.cli.terminal import progress_bar

__all__ = ["counting_progress"]


@contextmanager
def counting_progress(description: str, total: int) -> Iterator[Callable[[int], None]]:
    """A progress bar that counts to `total`; its value is told how many more are done."""
    with progress_bar(MofNCompleteColumn()) as progress:
        task = progress.add_task(description, total=total)
        yield lambda count: progress.advance(task, count)
