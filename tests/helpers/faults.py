"""Injects a fault at a chosen operation on files, in processes that are forked off where an export begins to write.

All that is Python's own is counted: what changes directories, opens files for writing, writes, flushes and reads.
"""

from __future__ import annotations

import builtins
import errno
import io
import os
import resource
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
from rich.progress import Progress

from sea_export.cli import main, progress
from sea_export.export import streaming

_CHANGES = ("mkdir", "rmdir", "rename", "replace", "link", "unlink", "remove", "fsync")
_FULL = ("mkdir", "link", "open", "write", "fsync")
_WRITE_BYTES = 1 << 14
_MISUSED_BASE, _BROKEN = 97, 98
_COUNTS = "\0"


@dataclass(frozen=True)
class Fault:
    """What happens, and at which operation.

    Attributes:
        kind: `none`; a signal (`SIGKILL`, `SIGTERM`, `SIGINT`) that comes before a change, or in the middle of a write;
            an error (`ENOSPC`, which stays, or `EIO`, which comes once) of a change; `limit`, the size that no file
            can exceed; `full`, which is the caller's to see to; `short` or `end`, a read that returns one byte or none.
        place: the number of the change or of the read, from 0; the bytes of `limit`
            and those left by `full`.
    """

    kind: str = "none"
    place: int = 0


@dataclass(frozen=True)
class End:
    """How a process into which a fault was injected has ended.

    Attributes:
        status: its exit status, as shells give it.
        message: what it wrote to stderr.
        changes: how many operations on files were counted, if it was not killed.
        reads: likewise.
    """

    status: int
    message: str
    changes: int = 0
    reads: int = 0


class Operations:
    """Counts operations on files, in all threads, and carries out a fault. Files are those below some directories."""

    def __init__(self, base: Path, directories: Sequence[Path]) -> None:
        self._base = str(base)
        self._directories = tuple(map(str, (base, *directories)))
        self.changes = self.reads = 0
        self._fault: Fault | None = None
        self._lock = threading.Lock()
        self._open = io.open

    def arm(self, fault: Fault) -> None:
        """From now on operations count, and to open a file of the base for anything but reading ends the process."""
        self._fault = fault
        if fault.kind == "limit":
            resource.setrlimit(resource.RLIMIT_FSIZE, (fault.place, resource.RLIM_INFINITY))
        sys.addaudithook(lambda event, values: _guard(self._base, event, values))

    def change(self, name: str, half: Callable[[], object] = lambda: None) -> None:
        """Notes a change that is about to be made, of which `half` makes a part."""
        fault = self._fault
        if fault is None:
            return
        with self._lock:
            place, self.changes = self.changes, self.changes + 1
        if fault.kind.startswith("SIG") and place == fault.place:
            half()
            os.kill(os.getpid(), signal.Signals[fault.kind])
        if (fault.kind == "EIO" and place == fault.place) or (
            fault.kind == "ENOSPC" and place >= fault.place and name in _FULL
        ):
            half()
            number = getattr(errno, fault.kind)
            raise OSError(number, os.strerror(number))

    def read(self, asked: int) -> int:
        """How many bytes a read that asks for some may return."""
        fault = self._fault
        if fault is None or not asked:
            return asked
        with self._lock:
            place, self.reads = self.reads, self.reads + 1
        if place == fault.place:
            return {"short": 1, "end": 0}.get(fault.kind, asked)
        return asked

    @contextmanager
    def installed(self) -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            for name in _CHANGES:
                patch.setattr(os, name, self._counted(name, getattr(os, name)))
            patch.setattr(os, "preadv", self._preadv(os.preadv))
            patch.setattr(io, "open", self._opened)
            patch.setattr(builtins, "open", self._opened)
            patch.setattr(safetensors.torch, "serialize_file", self._serialized)
            patch.setattr(streaming, "_CHUNK_BYTES", _WRITE_BYTES)  # tiny models are written in several pieces too
            # A thread that draws would be lost in a fork.
            patch.setattr(progress, "progress_bar", lambda *columns: Progress(*columns, disable=True))
            yield

    def _counted(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **options: Any) -> Any:
            self.change(name)
            if name != "fsync":  # no process notices it; only a power failure would
                return function(*arguments, **options)

        return counted

    def _preadv(self, function: Callable[..., int]) -> Callable[..., int]:
        def preadv(descriptor: int, buffers: list[memoryview], *rest: Any) -> int:
            count = self.read(len(buffers[0]))
            return function(descriptor, [buffers[0][:count]], *rest) if count else 0

        return preadv

    def _opened(self, file: Any, mode: str = "r", buffering: int = -1, *text: Any, **options: Any) -> Any:
        if self._fault is None or isinstance(file, int) or not os.fspath(file).startswith(self._directories):
            return self._open(file, mode, buffering, *text, **options)
        writes = bool(set("wxa+") & set(mode))
        if writes:
            self.change("open")
        raw = _StruckFile(self, os.fspath(file), mode.replace("b", "").replace("t", ""))
        if buffering == 0:
            return raw
        buffered = io.BufferedWriter(raw) if writes else io.BufferedReader(raw)
        return buffered if "b" in mode else io.TextIOWrapper(buffered, *text, **options)

    def _serialized(self, tensors: Any, file: Any, metadata: dict[str, str] | None = None) -> None:
        """Writes what safetensors would write, as Python."""
        contents = memoryview(safetensors.serialize(tensors, metadata))
        with open(file, "wb", buffering=0) as stream:
            for start in range(0, len(contents), _WRITE_BYTES):
                stream.write(contents[start : start + _WRITE_BYTES])


class _StruckFile(io.FileIO):
    def __init__(self, operations: Operations, file: str, mode: str) -> None:
        super().__init__(file, mode)
        self._operations = operations

    def write(self, data: Any) -> int:
        view = memoryview(data)
        done = 0

        def write_half() -> None:
            nonlocal done
            done = io.FileIO.write(self, view[: len(view) // 2])

        self._operations.change("write", write_half)
        return done + super().write(view[done:])

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer)
        count = self._operations.read(len(view))
        return super().readinto(view[:count]) if count else 0

    def readall(self) -> bytes:
        parts = []
        while part := self.read(_WRITE_BYTES):
            parts.append(part)
        return b"".join(parts)

    def read(self, size: int = -1) -> bytes:
        if size < 0:
            return self.readall()
        count = self._operations.read(size)
        return super().read(count) if count else b""


def _guard(base: str, event: str, values: tuple[Any, ...]) -> None:
    inside = [value for value in values if isinstance(value, (str, os.PathLike)) and os.fspath(value).startswith(base)]
    if not inside:
        return
    writes = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
    if (event == "open" and values[2] & writes) or event in ("os.remove", "os.rename", "os.chmod", "os.utime"):
        os.write(2, f"{event} of {inside}\n".encode())
        os._exit(_MISUSED_BASE)


class _AllStruck(BaseException):
    """Takes the first process out of the command, which it has begun only to be forked."""


Script = Generator[Fault, End, None]
"""Yields faults one after the other, and is told the end of each."""


def inject_into_command(
    arguments: list[str], script: Script, *, base: Path, directories: Sequence[Path], point: tuple[object, str]
) -> None:
    """Runs a command up to a point once, and from there on in a process of its own for each fault of a script.

    Args:
        arguments: the command line.
        script: what to do there.
        base: the directory of the base model, which may be opened for reading only.
        directories: where the command writes.
        point: where, as an object and the name of its function that is about to be called.
    """
    first, operations = os.getpid(), Operations(base, directories)
    owner, name = point
    reached = getattr(owner, name)

    failures: list[AssertionError] = []

    def inject_here(*given: Any, **options: Any) -> Any:
        if os.getpid() == first:
            try:
                _fork_each(script, operations)
            except AssertionError as failure:  # which the command would make a sentence of
                failures.append(failure)
                raise _AllStruck from None
        return reached(*given, **options)

    status = 0
    try:
        with operations.installed(), pytest.MonkeyPatch.context() as patch, _heeded(signal.SIGINT):
            patch.setattr(owner, name, inject_here)
            main(arguments)
    except _AllStruck:
        if failures:
            raise failures[0] from None
        return
    except SystemExit as end:
        assert os.getpid() != first, "the command ended before the point was reached"
        status = end.code
    except BaseException:
        if os.getpid() == first:
            raise
        traceback.print_exc()
        status = _BROKEN
    finally:
        if os.getpid() != first:
            sys.stderr.flush()
            os.write(2, f"{_COUNTS}{operations.changes} {operations.reads}".encode())
            os._exit(status)


@contextmanager
def _heeded(number: signal.Signals) -> Iterator[None]:
    """Has a signal not be ignored, as an interrupt is in what a shell runs in the background."""
    before = signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(number, before)


def _fork_each(script: Script, operations: Operations) -> None:
    """Returns in the forked processes only, which are to go on."""
    fault = next(script)
    while True:
        reading, writing = os.pipe()
        process = os.fork()
        if process == 0:
            os.dup2(writing, 2)
            sys.stdout, sys.stderr = open(os.devnull, "w"), open(2, "w", closefd=False)  # noqa: SIM115
            operations.arm(fault)
            return
        os.close(writing)
        with open(reading, encoding="utf-8") as stream:
            message, _, counts = stream.read().partition(_COUNTS)
        status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        try:
            fault = script.send(End(status if status >= 0 else 128 - status, message, *map(int, counts.split())))
        except StopIteration:
            raise _AllStruck from None
