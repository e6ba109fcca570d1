"""Runs a function in a copy of this process, whose processor time and memory are limited.

For code that comes with a file of unknown origin and may not end, such as a template: no exception can end a long
operation of the interpreter, but the system can end a process.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import signal
from collections.abc import Callable
from typing import Any

import psutil

from sea_export.errors import first_line

__all__ = ["Unfinished", "run_limited"]

_MEMORY_BYTES = 1_000_000_000


class Unfinished(Exception):
    """The function raised an exception, or took too much time or memory. The text says which."""


def run_limited(function: Callable[[], Any], seconds: int) -> Any:
    """The result of a function. What else it does is lost, because it does it in another process.

    Args:
        function: it returns JSON data.
        seconds: how much processor time it may take.

    Raises:
        Unfinished: it raised any exception, or took more time than that or 1 GB of memory.
    """
    read_end, write_end = os.pipe()
    process = os.fork()
    if not process:
        _run_and_end(function, seconds, write_end)
    os.close(write_end)
    try:
        with open(read_end, "rb") as stream:
            answer = stream.read()
    finally:
        os.kill(process, signal.SIGKILL)  # it has ended already, unless this process is being stopped
        os.waitpid(process, 0)
    if not answer:
        raise Unfinished(f"it takes more than {seconds} seconds, or too much memory")
    result, problem = json.loads(answer)
    if problem is not None:
        raise Unfinished(problem)
    return result


def _run_and_end(function: Callable[[], Any], seconds: int, write_end: int) -> None:
    """In the other process: writes the result and the problem, one of which is null, and ends."""
    try:
        gc.disable()  # objects that belong to a device must not be finalized here
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
        _limit_memory()
        try:
            answer = [function(), None]
        except Exception as error:
            answer = [None, f"{type(error).__name__}: {first_line(error)}"]
        with open(write_end, "wb") as stream:
            stream.write(json.dumps(answer).encode())
    finally:
        os._exit(0)  # without the exit handlers and buffers of the process that this is a copy of


def _limit_memory() -> None:
    taken = psutil.Process().memory_info().vms
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    wanted = taken + _MEMORY_BYTES
    limit = wanted if most == resource.RLIM_INFINITY else min(wanted, most)
    resource.setrlimit(resource.RLIMIT_AS, (limit, most))
