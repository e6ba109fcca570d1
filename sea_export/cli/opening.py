"""How commands open what their arguments name: a model, and the processes that share a job."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path

from sea_export.capture.opened_model import OpenedModel
from sea_export.cards.base_card import base_metadata, license_warning
from sea_export.cli.terminal import silenced, waiting
from sea_export.fitting.distributed import Processes, joined_processes, local_device
from sea_export.model.base import open_base
from sea_export.model.load_model import choose_device, parse_dtype, quiet_transformers
from sea_export.model.location import ModelLocation
from sea_export.model.run_options import RunOptions
from sea_export.model.threads import Threads, use_threads

__all__ = ["begin_computing", "joined_job", "opened_model"]

logger = logging.getLogger(__name__)


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
    logger.debug("opening %s.", location.name)
    dtype, device = parse_dtype(run.dtype), local_device(choose_device(run.device))
    with ExitStack() as stack:
        with waiting(f"Opening {location.name}"):
            base = stack.enter_context(
                open_base(
                    location,
                    dtype=dtype,
                    dequantize=run.dequantize,
                    trust_remote_code=run.trust_remote_code,
                )
            )
        if warning := license_warning(base.name, base_metadata(base)):
            logger.warning("%s.", warning)
        files = len(base.checkpoint.weight_files)
        logger.debug("%s: it has %d tensors in %d files.", base.name, len(base.checkpoint.tensors), files)
        yield OpenedModel(base, dtype, device, run.device_map, run.layerwise, scratch=output.resolve().parent)


@contextmanager
def joined_job() -> Iterator[Processes]:
    """The processes that share the job. All but the first print nothing, and end after the fit."""
    with joined_processes() as processes, nullcontext() if processes.is_first else silenced():
        yield processes
