"""Several processes that share the demonstrations of a fit: `torchrun` and `accelerate launch` start them.

Every process captures its share; statistics are gathered in the first one, and spectra go back to all. A process that
fails or is killed closes its connections, upon which the others fail too.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed

from sea_export.errors import InputError, SeaExportError
from sea_export.fitting.constant_reader import READER_FOLDS
from sea_export.fitting.spectrum import LayerSpectrum, SpectrumFitter

__all__ = ["ALONE", "Processes", "joined_processes", "local_device"]

# How long a process waits for the others: their shares are about equal, but their machines may not be.
_PATIENCE = timedelta(minutes=30)


@dataclass(frozen=True)
class Processes:
    """The processes of one job, seen from one of them."""

    rank: int
    count: int

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes and prints."""
        return self.rank == 0

    def check_enough(self, demonstrations: int) -> None:
        """Raises InputError if there are so few demonstrations that a process would get none."""
        useful = -(-demonstrations // READER_FOLDS)
        if self.count > max(1, useful):
            raise InputError(
                f"{demonstrations} demonstrations are too few for {self.count} processes: start at most {useful}"
            )

    def share(self, order: Sequence[int]) -> list[int]:
        """Of demonstrations, in the order in which they are processed, the indices that this process captures, sorted.

        Rounds of `READER_FOLDS` are dealt out, so that every demonstration keeps its fold.
        """
        return sorted(index for place, index in enumerate(order) if place // READER_FOLDS % self.count == self.rank)

    def finish(self, fitter: SpectrumFitter) -> LayerSpectrum:
        """The spectrum of what the fitters of all processes have seen. Every process calls it, in the same order.

        Raises:
            SeaExportError: another process has ended.
        """
        if self.count == 1:
            return fitter.finish()
        fitters: list[SpectrumFitter] = [fitter] * self.count if self.is_first else []
        spectra: list[LayerSpectrum | None] = [None]
        try:
            torch.distributed.gather_object(fitter.to(torch.device("cpu")), fitters if self.is_first else None)
            if self.is_first:
                first, *others = fitters
                for other in others:
                    first.merge(other)
                spectra = [first.finish()]
            torch.distributed.broadcast_object_list(spectra)
        except RuntimeError as error:
            raise SeaExportError(
                f"process {self.rank} of {self.count} has lost another one, which failed or was killed"
            ) from error
        (spectrum,) = spectra
        assert spectrum is not None
        return spectrum


ALONE = Processes(rank=0, count=1)


@contextmanager
def joined_processes() -> Iterator[Processes]:
    """The processes that this one was started with, connected; `ALONE` if it was started by itself.

    Raises:
        SeaExportError: the others cannot be reached.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield ALONE
        return
    try:
        # Statistics travel as objects, on the CPU, wherever they were made.
        torch.distributed.init_process_group("gloo", timeout=_PATIENCE)
    except (RuntimeError, ValueError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise SeaExportError(f"another of the {count} processes of this job cannot be reached: {reason}") from error
    try:
        yield Processes(torch.distributed.get_rank(), count)
    finally:
        torch.distributed.destroy_process_group()


def local_device(device: str) -> str:
    """The GPU of this process, of those on its machine, where several share it."""
    return f"cuda:{os.environ['LOCAL_RANK']}" if device == "cuda" and "LOCAL_RANK" in os.environ else device
