"""Ctrl-C, SIGTERM and a closed terminal end a command as an error does: unfinished files are removed."""

from __future__ import annotations

import signal
import time
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["Stopped", "Stops", "first_interrupt_kept", "stoppable"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_IMPATIENCE_SECONDS = 2.0


class Stopped(KeyboardInterrupt):
    """The process was asked to end. It is a KeyboardInterrupt, because libraries do not catch that."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.exit_code = 128 + number
        self.by_interrupt = number == signal.SIGINT


class Stops:
    """Whether the process was asked to end."""

    def __init__(self) -> None:
        self.asked: Stopped | None = None

    def meant(self, error: Exception | Stopped) -> Exception | Stopped:
        """The stop that an error comes from, or the error itself.

        A library that is stopped while it is imported may raise anything.
        """
        return error if self.asked is None else self.asked


@contextmanager
def stoppable(stops: Stops | None = None) -> Iterator[None]:
    """A context in which signals that ask the process to end raise `Stopped`. Ignored signals stay ignored (nohup).

    Signals that follow within two seconds mean the same, and do not interrupt the clean-up.

    Args:
        stops: where it is kept that such a signal came; None to keep it nowhere.
    """
    obeyed = -_IMPATIENCE_SECONDS

    def stop(number: int, frame: types.FrameType | None) -> None:
        nonlocal obeyed
        if time.monotonic() - obeyed >= _IMPATIENCE_SECONDS:
            obeyed = time.monotonic()
            stopped = Stopped(number)
            if stops is not None:
                stops.asked = stopped
            raise stopped

    before = {number: signal.getsignal(number) for number in _SIGNALS}
    changed = [number for number in _SIGNALS if before[number] is not signal.SIG_IGN]
    for number in changed:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number in changed:
            signal.signal(number, before[number])


@contextmanager
def first_interrupt_kept() -> Iterator[Callable[[], bool]]:
    """A context in which the first Ctrl-C raises nothing. Those that follow do what they did before.

    Yields:
        a function that says whether it came.
    """
    before = signal.getsignal(signal.SIGINT)
    came = False

    def keep(number: int, frame: types.FrameType | None) -> None:
        nonlocal came
        if not came:
            came = True
        elif callable(before):
            before(number, frame)

    if before is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, keep)
    try:
        yield lambda: came
    finally:
        signal.signal(signal.SIGINT, before)
