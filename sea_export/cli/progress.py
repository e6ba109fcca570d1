"""Progress of commands: bars on a terminal, and elsewhere what `sea_export.cli.stages` tells."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import TYPE_CHECKING

from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from sea_export.cli.consoles import errors
from sea_export.cli.stages import Stage, shows_bars, told, waiting
from sea_export.text import visible

if TYPE_CHECKING:  # a push shows progress without torch
    from sea_export.capture.opened_model import OpenedModel
    from sea_export.fitting.distributed import Processes

__all__ = ["counting_progress", "fit_progress", "loaded", "progress_bar", "saving_progress"]


@contextmanager
def counting_progress(description: str, total: int) -> Iterator[Callable[[int], None]]:
    """A progress bar that counts to `total`, or only its name for 0. Its value is told how many more are done."""
    if not total:
        with waiting(description):
            yield lambda count: None
        return
    stage = Stage(description, total, "items")
    with told(stage), progress_bar(MofNCompleteColumn()) as progress:
        task = progress.add_task(visible(description), total=total)

        def advance(count: int) -> None:
            stage.advance(count)
            progress.advance(task, count)

        yield advance


@contextmanager
def fit_progress(demonstrations: int, processes: Processes) -> Iterator[Callable[[int], None]]:
    """A progress bar over the demonstrations that this process reads, with their number per second.

    What follows when all of them are read has no number, and is a stage of its own.
    """
    columns = (MofNCompleteColumn(), TextColumn("demonstrations"), TextColumn("{task.fields[rate]}"))
    reading = Stage("Reading demonstrations", math.ceil(demonstrations / processes.count), "items")
    with ExitStack() as stages, progress_bar(*columns) as progress:
        stages.enter_context(told(reading))
        task = progress.add_task(reading.name, total=reading.total, rate="")

        def advance(count: int) -> None:
            read = reading.done < reading.total
            reading.advance(count)
            if read and reading.done >= reading.total:
                stages.pop_all().close()
                stages.enter_context(told(Stage("Fitting")))
            speed = progress.tasks[task].speed
            rate = f"{speed:.1f}/s" if speed else ""
            description = "Fitting" if reading.done >= reading.total else reading.name
            progress.update(task, advance=count, rate=rate, description=description)

        yield advance


@contextmanager
def saving_progress(stage: str, total_bytes: int) -> Iterator[Callable[[int], None]]:
    """The progress of a stage of a save: a bar over its bytes, or only its name if they are not counted (0)."""
    if not total_bytes:
        with waiting(stage):
            yield lambda count: None
        return
    counted = Stage(stage, total_bytes, "bytes")
    with told(counted), progress_bar(DownloadColumn(), TransferSpeedColumn()) as progress:
        task = progress.add_task(visible(stage), total=total_bytes)

        def advance(count: int) -> None:
            counted.advance(count)
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


def progress_bar(*columns: ProgressColumn) -> Progress:
    """A progress bar with the given columns. It is visible only on a terminal."""
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        *columns,
        TimeRemainingColumn(),
        console=errors,
        transient=True,
        disable=not shows_bars(),
    )
