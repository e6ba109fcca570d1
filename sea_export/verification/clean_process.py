"""The process that loads an export as any user would, and knows nothing of sea-export.

Its imports take seconds, so it is begun while this process is busy with other work, and waits for its task. It shares
nothing with this process but a pipe, from which it reads where its task is. When this process ends, however it does,
the pipe closes, and the other process ends too. Nothing here imports torch.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from sea_export.errors import SeaExportError
from sea_export.locks import scratch_directory
from sea_export.model.isolated_python import OtherPython, start_python

__all__ = ["CleanProcess"]

logger = logging.getLogger(__name__)

_PROBE = Path(__file__).with_name("verification_probe.py")
_SCRATCH = "sea-export-verification-"
_ERRORS = "errors.txt"

# Makes the GNU C library give freed memory back to the system, in a process whose memory is limited.
_LEAN = {"MALLOC_MMAP_THRESHOLD_": str(2**20)}


@dataclass(frozen=True)
class _Running:
    process: OtherPython
    pipe: int
    """The end of the pipe that this process writes to."""
    scratch: Path
    lean: bool


class CleanProcess:
    """A context in which there can be such a process. It does one task, and is gone when the context ends."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._running: _Running | None = None

    def __enter__(self) -> CleanProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    def begin(self, *, lean: bool = False) -> None:
        """Starts it, so that it imports what it will need. One that was begun before is ended.

        Args:
            lean: whether it gives memory back early, which costs a little time.
        """
        self.end()
        self._running = self._begun(lean)

    def _begun(self, lean: bool) -> _Running:
        scratch = self._stack.enter_context(scratch_directory(_SCRATCH, Path(tempfile.gettempdir())))
        # Transformers copies all code that it runs into this cache. Here the copy is removed afterwards.
        environment = {"HF_MODULES_CACHE": str(scratch), **(_LEAN if lean else {})}
        read_end, pipe = os.pipe()
        self._stack.callback(os.close, pipe)
        with os.fdopen(read_end, "rb"), open(scratch / _ERRORS, "wb") as errors:
            process = start_python([str(_PROBE), str(read_end)], environment=environment, pipe=read_end, errors=errors)
        self._stack.callback(process.wait)
        self._stack.callback(process.kill)
        return _Running(process, pipe, scratch, lean)

    def end(self) -> None:
        """Ends it, whatever it is doing, and removes what it has written. Nothing happens if there is none."""
        self._running = None
        self._stack.close()

    def ask(self, request: Mapping[str, Any], *, lean: bool = False) -> Callable[[], Path]:
        """Gives it a task. It is begun first if it does not wait already.

        Args:
            request: what `sea_export.verification.verification_probe.answer` describes, without the places of files.
            lean: see `begin`.

        Returns:
            What waits until the task is done, and gives the file with the answer, which is there until the process is
            ended. It raises SeaExportError if the process failed, or was killed; the message tells of the checkpoint
            of the request.
        """
        name, running = Path(request["checkpoint"]).name, self._running
        if running is not None and (status := running.process.poll()) is not None:
            logger.warning(
                "%s: the process that was to load it to verify it has ended while it waited (%s). Another one is "
                "started; where memory is short, choose --layerwise or --no-verify.",
                name,
                signal.Signals(-status).name if status < 0 else f"status {status}",
            )
            running = None
        if running is None or running.lean != lean:
            self.end()
            running = self._running = self._begun(lean)
        task, answer = running.scratch / "request.json", running.scratch / "logits.safetensors"
        places = {"scratch": str(running.scratch), "answer": str(answer)}
        task.write_text(json.dumps({**request, **places}), encoding="utf-8")
        with suppress(BrokenPipeError):  # it has just ended, which its status tells
            os.write(running.pipe, f"{task}\n".encode())

        def wait() -> Path:
            if status := running.process.wait():
                raise SeaExportError(_failure(name, status, running.scratch / _ERRORS))
            return answer

        return wait


def _failure(name: str, status: int, errors: Path) -> str:
    """What to tell of a process that ended with a status, and printed something on standard error."""
    if status < 0:
        return (
            f"{name}: the process that loads it to verify it was ended by the signal {_signal_name(-status)}, "
            "as the system does where memory runs out. Free some memory, choose --layerwise, or leave the verification "
            "out with --no-verify."
        )
    told = errors.read_text(encoding="utf-8", errors="replace")
    last_line = told.strip().rpartition("\n")[2].rstrip(". ")
    return f"{name}: plain transformers cannot load it: {last_line}."


def _signal_name(number: int) -> str:
    """The name of a signal; of one that has none its number."""
    return next((one.name for one in signal.Signals if one == number), str(number))
