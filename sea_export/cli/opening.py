"""How commands open what their arguments name: a model, and the processes that share a job."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from sea_export.capture.opened_model import OpenedModel
from sea_export.cli.terminal import silenced, waiting
from sea_export.fitting.distributed import Processes, joined_processes
from sea_export.interface.loaded_base import open_located
from sea_export.model.load_model import quiet_transformers
from sea_export.model.location import ModelLocation
from sea_export.model.run_options import RunOptions
from sea_export.model.threads import Threads, use_threads

__all__ = ["begin_computing", "joined_job", "opened_model"]


def begin_computing(threads: int | None) -> Threads:
    """Sets up the libraries for a command: without messages of their own, and with as many threads as help.

    Args:
        threads: how many, if the user says it.
    """
    quiet_transformers()
    return use_threads(threads)


@contextmanager
def opened_model(location: ModelLocation, run: RunOptions, output: Path) -> Iterator[OpenedModel]:
    """A model, opened as its options say, from where `locate_model` has found it, after `begin_computing`.

    Hidden states that do not fit into memory are written beside `output`, into files without a name.
    """
    quiet_transformers()
    with open_located(location, run, output.resolve().parent, waiting) as opened:
        yield opened


@contextmanager
def joined_job() -> Iterator[Processes]:
    """The processes that share the job. All but the first print nothing, and end after the fit."""
    with joined_processes() as processes, nullcontext() if processes.is_first else silenced():
        yield processes
