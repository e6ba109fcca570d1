"""What it means that an input is refused, asked of the command line: one clear error, and nothing else happened."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.helpers.messages import assert_names
from tests.helpers.peak_memory import PeakMemory

MAXIMUM_PEAK_BYTES = 1_500_000_000
# Above what Python with everything imported has, which is below the rest of the maximum.
MAXIMUM_GROWTH_BYTES = 500_000_000
_SECONDS = 60
_HASHED_BYTES = 5_000_000


@dataclass
class Outcome:
    """How a command ended."""

    status: int
    output: str
    seconds: float
    peak_bytes: int


class Commands:
    """Runs commands, each in a process of its own, with no network and with a folder for temporary files."""

    def __init__(self, scratch: Path, warm_up: Sequence[object]) -> None:
        self.scratch = scratch
        self._server = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("command_server.py")), *map(str, warm_up)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={
                **os.environ,
                "HF_HUB_OFFLINE": "1",
                "HF_MODULES_CACHE": str(scratch),
                "OMP_NUM_THREADS": "1",
                "TMPDIR": str(scratch),
                "PYTHONPATH": str(Path(__file__).parents[2]),
            },
        )

    def run(self, *arguments: object) -> Outcome:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        request = {"arguments": [str(argument) for argument in arguments], "seconds": _SECONDS}
        print(json.dumps(request), file=self._server.stdin, flush=True)
        return Outcome(**json.loads(self._server.stdout.readline()))

    def close(self) -> None:
        assert self._server.stdin is not None
        self._server.stdin.close()
        self._server.wait()

    def refuses(self, arena: Path, *arguments: object, names: Sequence[object] = (), status: int = 2) -> Outcome:
        """Asserts that a command refuses its input, with nothing in `arena` (where all of it is) or beside it changed.

        Args:
            arena: a directory; the command's output, which must not be made, would be in it.
            arguments: the command's.
            names: the facts that the error must name.
            status: the exit status that it must have.
        """
        before, temporary = state_of(arena), state_of(self.scratch)
        outcome = self.run(*arguments)
        assert outcome.status == status, outcome.output
        assert "Traceback" not in outcome.output
        lines = outcome.output.strip().splitlines()
        errors = [line for line in lines if line.startswith("Error: ")]
        assert len(errors) == 1, outcome.output
        assert lines[-1] == errors[0], outcome.output
        assert len(errors[0]) < 1200
        assert errors[0].isprintable()
        assert_names(errors[0], *names)
        assert state_of(arena) == before
        assert state_of(self.scratch) == temporary
        assert outcome.peak_bytes < MAXIMUM_PEAK_BYTES
        return outcome


@contextmanager
def little_growth() -> Iterator[None]:
    """Asserts that this process never has much more memory than at the beginning of the context (on Linux)."""
    if not PeakMemory.is_known():
        yield
        return
    peak = PeakMemory()
    yield
    assert peak.growth() < MAXIMUM_GROWTH_BYTES, (peak.growth(), peak.before)


def state_of(directory: Path) -> dict[str, object]:
    """What is in a directory, links and pipes included: enough to see that anything was written."""
    state: dict[str, object] = {}
    for folder, folders, files in os.walk(directory):
        for name in (*folders, *files):
            path = Path(folder, name)
            status = path.lstat()
            digest = None
            if path.is_file() and not path.is_symlink() and status.st_size < _HASHED_BYTES:
                digest = hashlib.sha256(path.read_bytes()).hexdigest()
            state[str(path)] = (status.st_mode, status.st_size, status.st_mtime_ns, digest)
    return state
