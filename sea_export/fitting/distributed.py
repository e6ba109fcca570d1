"""Several processes that share the demonstrations of a fit: `torchrun` and `accelerate launch` start them.

Every process captures its share. Accumulated statistics are gathered in the first process, and finished ones go back to
all. A process that fails or is killed closes its connections, and then the others fail too.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed

from sea_export.errors import InputError, SeaExportError, first_line
from sea_export.fitting.activation_statistics import FOLDS
from sea_export.fitting.edit_method import Accumulator, Finished
from sea_export.model.process_count import process_count

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
        """Raises InputError if there are so few demonstrations that a process would get none.

        Args:
            demonstrations: their number.
        """
        useful = -(-demonstrations // FOLDS)
        if self.count > max(1, useful):
            raise InputError(
                f"--demonstrations: {demonstrations} are too few for {self.count} processes. Start at most {useful}."
            )

    def share(self, order: Sequence[int]) -> list[int]:
        """The demonstrations that this process captures.

        Rounds of `FOLDS` demonstrations are dealt out, so that every demonstration keeps its fold.

        Args:
            order: indices of all demonstrations, in the order in which they are processed.

        Returns:
            indices, sorted.
        """
        return sorted(index for rank, index in enumerate(order) if rank // FOLDS % self.count == self.rank)

    def finish(self, accumulator: Accumulator[Finished]) -> Finished:
        """The finished statistics of what the accumulators of all processes have seen.

        Args:
            accumulator: that of this process. Every process calls this for the same targets in the same order.

        Raises:
            SeaExportError: another process has ended.
        """
        if self.count == 1:
            return accumulator.finish()
        gathered: list[Accumulator[Finished]] = [accumulator] * self.count if self.is_first else []
        finished: list[Finished | None] = [None]
        try:
            torch.distributed.gather_object(accumulator.to(torch.device("cpu")), gathered if self.is_first else None)
            if self.is_first:
                first, *others = gathered
                for other in others:
                    first.merge(other)
                finished = [first.finish()]
            torch.distributed.broadcast_object_list(finished)
        except RuntimeError as error:
            raise SeaExportError(
                f"process {self.rank} of {self.count}: it has lost another one, which failed or was killed. Read what "
                "that one printed."
            ) from error
        (statistics,) = finished
        assert statistics is not None
        return statistics


ALONE = Processes(rank=0, count=1)


@contextmanager
def joined_processes() -> Iterator[Processes]:
    """The processes that this one was started with, connected; `ALONE` if it was started by itself.

    Raises:
        InputError: see `process_count`.
        SeaExportError: the others cannot be reached.
    """
    count = process_count()
    if count == 1:
        yield ALONE
        return
    try:
        # Statistics travel as objects, on the CPU, wherever they were made.
        torch.distributed.init_process_group("gloo", timeout=_PATIENCE)
    except (RuntimeError, ValueError) as error:
        raise SeaExportError(
            f"job of {count} processes: another process cannot be reached ({first_line(error)}). Start all of them, "
            "with the same MASTER_ADDR and MASTER_PORT."
        ) from error
    try:
        yield Processes(torch.distributed.get_rank(), count)
    finally:
        torch.distributed.destroy_process_group()


def local_device(device: str) -> str:
    """The GPU of this process, of those on its machine, where several share it.

    Args:
        device: what `--device` says. Only `cuda`, without a number, depends on the process.
    """
    return f"cuda:{os.environ['LOCAL_RANK']}" if device == "cuda" and "LOCAL_RANK" in os.environ else device
