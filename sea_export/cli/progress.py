"""Progress of commands: bars on a terminal, and elsewhere a line every 30 seconds."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

from rich.filesize import decimal
from rich.progress import DownloadColumn, MofNCompleteColumn, TextColumn, TransferSpeedColumn

from sea_export.capture.opened_model import OpenedModel
from sea_export.cli.terminal import progress_bar, told_regularly, waiting
from sea_export.fitting.distributed import Processes
from sea_export.text import visible

__all__ = ["counting_progress", "fit_progress", "loaded", "saving_progress"]


@contextmanager
def counting_progress(description: str, total: int) -> Iterator[Callable[[int], None]]:
    """A progress bar that counts to `total`. Its value is told how many more are done."""
    counted = _Counted(description, total)
    with told_regularly(counted.line), progress_bar(MofNCompleteColumn()) as progress:
        task = progress.add_task(visible(description), total=total)

        def advance(count: int) -> None:
            counted.done += count
            progress.advance(task, count)

        yield advance


@contextmanager
def fit_progress(demonstrations: int, processes: Processes) -> Iterator[Callable[[int], None]]:
    """A progress bar over the demonstrations that this process reads, with their number per second.

    What follows when all of them are read has no number, and is told by another name.
    """
    columns = (MofNCompleteColumn(), TextColumn("demonstrations"), TextColumn("{task.fields[rate]}"))
    counted = _Counted("Reading demonstrations", math.ceil(demonstrations / processes.count))
    with told_regularly(counted.line), progress_bar(*columns) as progress:
        task = progress.add_task(counted.description, total=counted.total, rate="")

        def advance(count: int) -> None:
            counted.done += count
            if counted.done >= counted.total:
                counted.description = "Fitting"
            speed = progress.tasks[task].speed
            rate = f"{speed:.1f}/s" if speed else ""
            progress.update(task, advance=count, rate=rate, description=counted.description)

        yield advance


@contextmanager
def saving_progress(stage: str, total_bytes: int) -> Iterator[Callable[[int], None]]:
    """The progress of a stage of a save: a bar over its bytes, or only its name if they are not counted (0)."""
    counted = _Counted(stage, total_bytes, in_bytes=True)
    if not total_bytes:
        with waiting(stage):
            yield lambda count: None
        return
    with told_regularly(counted.line), progress_bar(DownloadColumn(), TransferSpeedColumn()) as progress:
        task = progress.add_task(visible(stage), total=total_bytes)

        def advance(count: int) -> None:
            counted.done += count
            progress.advance(task, count)

        yield advance


def loaded(opened: OpenedModel) -> OpenedModel:
    """A model whose weights are in memory, or of which it is known that a layer at a time will be.

    Args:
        opened: the model, of which nothing may have been loaded.
    """
    with nullcontext() if opened.is_layerwise else waiting(f"Loading {opened.base.name}"):
        _ = opened.model
    return opened


class _Counted:
    """How far work has come, as a line of text."""

    def __init__(self, description: str, total: int, *, in_bytes: bool = False) -> None:
        self.description, self.total, self.done = description, total, 0
        self._text = decimal if in_bytes else str

    def line(self) -> str:
        return f"{self.description}: {self._text(self.done)} of {self._text(self.total)}"
