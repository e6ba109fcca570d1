"""Other Python processes, which find the installed packages and no file of the folder in which they start."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import IO

__all__ = ["OtherPython", "run_python", "start_python"]

OtherPython = subprocess.Popen[bytes]
"""A process that was started."""


def run_python(
    arguments: Sequence[str], *, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs Python in another process, and waits for it.

    It searches neither the current folder nor that of its program for modules. It has no standard input, so that
    nothing in it can ask a question.

    Args:
        arguments: those of Python.
        environment: variables to add to those of this process.

    Returns:
        The exit status, and what it printed.
    """
    return subprocess.run(
        [sys.executable, "-I", *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        env={**os.environ, **(environment or {})},
    )


def start_python(
    arguments: Sequence[str], *, environment: Mapping[str, str], pipe: int, errors: IO[bytes]
) -> OtherPython:
    """Starts such a process, and does not wait for it.

    Args:
        arguments: those of Python.
        environment: variables to add to those of this process.
        pipe: the descriptor of a pipe that it gets. It has no other descriptor of this process.
        errors: a file for what it prints on standard error. Its standard output is not kept.
    """
    return subprocess.Popen(
        [sys.executable, "-I", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=errors,
        pass_fds=[pipe],
        env={**os.environ, **environment},
    )
