"""Progress bars of commands."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import DownloadColumn, MofNCompleteColumn, TextColumn, TransferSpeedColumn

from sea_export.cli.terminal import progress_bar
from sea_export.fitting.distributed import Processes
from sea_export.model.base import Base
from sea_export.text import visible

__all__ = ["byte_progress", "counting_progress", "fit_progress"]


@contextmanager
def counting_progress(description: str, total: int) -> Iterator[Callable[[int], None]]:
    """A progress bar that counts to `total`. Its value is told how many more are done."""
    with progress_bar(MofNCompleteColumn()) as progress:
        task = progress.add_task(visible(description), total=total)
        yield lambda count: progress.advance(task, count)


@contextmanager
def fit_progress(demonstrations: int, processes: Processes) -> Iterator[Callable[[int], None]]:
    """A progress bar over the demonstrations that this process reads, with their number per second."""
    columns = (MofNCompleteColumn(), TextColumn("demonstrations"), TextColumn("{task.fields[rate]}"))
    with progress_bar(*columns) as progress:
        task = progress.add_task("Capturing", total=math.ceil(demonstrations / processes.count), rate="")

        def advance(count: int) -> None:
            speed = progress.tasks[task].speed
            progress.update(task, advance=count, rate=f"{speed:.1f}/s" if speed else "")

        yield advance


@contextmanager
def byte_progress(description: str, base: Base) -> Iterator[Callable[[int], None]]:
    """A progress bar over the bytes of the checkpoint of a base."""
    with progress_bar(DownloadColumn(), TransferSpeedColumn()) as progress:
        task = progress.add_task(description, total=base.checkpoint.size)
        yield lambda count: progress.advance(task, count)
