"""How many threads torch computes with: as many as help.

On a machine that is busy, or inside of a container that may use less than it sees, more threads wait for one another
more than they compute. So the same product is timed with one thread and with all.
"""

from __future__ import annotations

import logging
import os
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

__all__ = ["Threads", "half_of_the_threads", "processors", "use_threads"]

logger = logging.getLogger(__name__)

_VARIABLE = "OMP_NUM_THREADS"
# The shape of the product that is timed, and how often. A typical time counts, because other programs come and go.
_ROWS, _COLUMNS, _RUNS = 128, 768, 5
# How much faster all threads have to be, so that noise does not choose them.
_MARGIN = 0.9


@dataclass(frozen=True)
class Threads:
    """A number of threads, and why it is that one."""

    count: int
    reason: str


def use_threads(wanted: int | None) -> Threads:
    """Sets how many threads torch computes with in this process.

    Args:
        wanted: the number that the user asks for. None takes the one in the environment variable OMP_NUM_THREADS, and
            without one as many as help.
    """
    threads = _chosen(wanted)
    torch.set_num_threads(threads.count)
    logger.debug("computing with %d threads: %s.", threads.count, threads.reason)
    return threads


def _chosen(wanted: int | None) -> Threads:
    available = torch.get_num_threads()
    if wanted is not None:
        return Threads(wanted, "as given")
    if os.environ.get(_VARIABLE):
        return Threads(available, f"as {_VARIABLE} says")
    if available == 1:
        return Threads(1, "there is one processor")
    seconds: dict[int, list[float]] = {available: [], 1: []}
    for _ in range(_RUNS):  # by turns, so that both meet the same other programs
        for threads, own in seconds.items():
            own.append(_seconds(threads))
    if statistics.median(seconds[available]) < _MARGIN * statistics.median(seconds[1]):
        return Threads(available, "faster than 1 in a trial")
    return Threads(1, f"{available} were not faster in a trial")


def _seconds(threads: int) -> float:
    """How long one product takes with some threads."""
    torch.set_num_threads(threads)
    left, right = torch.ones(_ROWS, _COLUMNS), torch.ones(_COLUMNS, _COLUMNS)
    left @ right  # the first one prepares
    start = time.perf_counter()
    left @ right
    return time.perf_counter() - start


def processors() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def half_of_the_threads() -> Iterator[int]:
    """A context in which torch uses at most half of the processors, so that another process can compute beside this.

    Yields:
        how many threads the other process may use.
    """
    before = torch.get_num_threads()
    each = min(before, max(1, processors() // 2))
    torch.set_num_threads(each)
    try:
        yield each
    finally:
        torch.set_num_threads(before)
