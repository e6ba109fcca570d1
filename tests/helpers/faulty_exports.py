"""Exports into which faults are injected, and what has to hold after each."""

from __future__ import annotations

import json
import os
import random
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import sea_export.model.base
import sea_export.saving
from sea_export.files.digests import file_digests
from sea_export.model.targets import Target
from tests.helpers.checkpoint_files import contents_of
from tests.helpers.faults import End, Fault, Script, inject_into_command
from tests.helpers.gguf_files import write_gguf
from tests.helpers.messages import assert_names
from tests.helpers.tiny_edits import spectral_edit

STATUS_OF_SIGNAL = {"SIGKILL": 137, "SIGTERM": 143, "SIGINT": 130}
WRITE_FAULTS = ("ENOSPC", "EIO", "limit")
READ_FAULTS = ("short", "end")


@dataclass(frozen=True)
class FaultyExport:
    """An export into which faults are injected.

    Attributes:
        format: its format.
        base: the directory of the base.
        edit: that of the edit.
        directory: where the output is written, and nothing else.
        temporary: the system's directory for temporary files, which is empty.
        overwrite: whether an older output is replaced.
        point: where faults begin.
        file: the name of the GGUF file in the directory of the base, if it is one.
    """

    format: str
    base: Path
    edit: Path
    directory: Path
    temporary: Path
    overwrite: bool = False
    point: tuple[object, str] = (sea_export.saving, "staged_output")
    file: str = ""

    @property
    def output(self) -> Path:
        return self.directory / "out"

    def command(self) -> list[object]:
        """The command that makes the output, without the option to replace an older one."""
        command = ["save", self.edit, self.output, "--base", self.base / self.file]
        return [*command, "--no-verify", "--format", self.format]

    def sizes(self) -> list[int]:
        """Bytes of the files of the output that is there."""
        return [path.stat().st_size for path in self.output.rglob("*") if path.is_file()]

    def drawn(self, kinds: Sequence[str], undisturbed: End, count: int, generator: random.Random) -> Iterator[Fault]:
        """Faults of any kind at any place."""
        places = {"limit": max(self.sizes()), "full": sum(self.sizes()), "short": undisturbed.reads}
        places["end"] = undisturbed.reads
        for kind in generator.choices(kinds, k=count):
            yield Fault(kind, generator.randrange(places.get(kind, undisturbed.changes)))

    def inject(self, faults: Callable[[End], Iterable[Fault]], count_case: Callable[[], None]) -> None:
        """Injects faults into the export, checks what is left, and that the next run succeeds and leaves nothing else.

        Args:
            faults: gives the faults, from how an undisturbed run ended.
            count_case: called for each.
        """
        options = ["--overwrite"] if self.overwrite else []
        self._prepare()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tempfile, "tempdir", str(self.temporary))
            inject_into_command(
                [*map(str, self.command()), *options],
                self._script(faults, count_case),
                base=self.base,
                directories=(self.directory, self.temporary),
                point=self.point,
            )

    def _script(self, faults: Callable[[End], Iterable[Fault]], count_case: Callable[[], None]) -> Script:
        base = _state_of(self.base)
        first = yield Fault()
        assert (first.status, first.message) == (0, ""), first
        assert_complete(self.output)
        new = contents_of(self.output)
        self._prepare()
        undisturbed = yield Fault()  # the first one has also removed what was made before the point
        assert (undisturbed.status, undisturbed.message) == (0, ""), undisturbed
        assert contents_of(self.output) == new
        for fault in faults(undisturbed):
            count_case()
            old = self._prepare()
            with self._filled(fault):
                end = yield fault
            try:
                self._check(fault, end, old, new)
                assert _state_of(self.base) == base, "the base was touched"
                if self.overwrite or not self.output.exists() or self._others():
                    if not self.overwrite and self.output.exists():
                        shutil.rmtree(self.output)
                    end = yield Fault()
                    assert (end.status, end.message) == (0, "")
                    assert contents_of(self.output) == new
                assert self._others() == [], "something was left behind"
            except AssertionError as error:
                raise AssertionError(f"{error}: {self}, {fault}: {end}") from error

    def _prepare(self) -> dict[str, bytes]:
        """Has the directory as it is before a run. Returns what is in the output."""
        if self.output.exists():
            shutil.rmtree(self.output)
        if not self.overwrite:
            return {}
        self.output.mkdir()
        (self.output / "sea_export.json").write_text('{"files": {}}')
        return contents_of(self.output)

    def _check(self, fault: Fault, end: End, old: dict[str, bytes], new: dict[str, bytes]) -> None:
        left = contents_of(self.output)
        # Killed between two renames: the old output waits beside its place for the next run.
        moved_away = self.overwrite and fault.kind == "SIGKILL" and not self.output.exists()
        if moved_away:
            assert contents_of(self.directory / ".out.partial" / "replaced") == old, "the old output is lost"
        elif left != new:
            assert left == old, "the output is neither whole nor what it was"
            assert self.output.exists() == self.overwrite
        if fault.kind in STATUS_OF_SIGNAL:
            assert end.status == STATUS_OF_SIGNAL[fault.kind]
            if fault.kind == "SIGKILL":
                assert end.message == ""
            else:
                assert end.message.count("\n") == 1
                assert_names(end.message, "Error: ", fault.kind)
        elif end.status:
            # A file that ends early while it is converted cannot be told from a damaged one.
            assert end.status == 1 or (self.file and end.status == 2 and fault.kind in READ_FAULTS)
            assert end.message.startswith("Error: ")
            assert end.message.count("\n") == 1
        else:
            assert left == new
        if fault.kind != "SIGKILL" and not self.overwrite:
            assert self._others() == [], "not cleaned up"

    @contextmanager
    def _filled(self, fault: Fault) -> Iterator[None]:
        """Leaves as many bytes of the file system as a fault says that fills it."""
        filler = self.directory.parent / "filler"
        if fault.kind == "full":
            system = os.statvfs(self.directory)
            with open(filler, "wb") as file:
                os.posix_fallocate(file.fileno(), 0, system.f_bavail * system.f_bsize - fault.place)
        yield
        filler.unlink(missing_ok=True)

    def _others(self) -> list[Path]:
        return [path for path in (*self.directory.iterdir(), *self.temporary.iterdir()) if path != self.output]


@dataclass(frozen=True)
class FaultyPatch(FaultyExport):
    """The application of a patch, whose file stands in the place of the edit."""

    def command(self) -> list[object]:
        return ["patch", "apply", self.base, self.edit, self.output]


def faulty_gguf_export(
    directory: Path, outputs: Path, temporary: Path, *, parts: bool, overwrite: bool, format: str = "gguf"
) -> FaultyExport:
    """An export of a GGUF model. Faults begin before it is converted, as every export of one does.

    What is beside the model, `gguf-adapter`, is a LoRA and a control vector.

    Args:
        directory: an empty directory for the base and the edit.
        outputs: where the output is written, and nothing else.
        temporary: the system's directory for temporary files, which is empty.
        parts: whether the model is in several files.
        overwrite: whether an older output is replaced.
        format: `gguf` or `gguf-adapter`.
    """
    base, edit = directory / "base", directory / "edit"
    base.mkdir()
    edit.mkdir()
    write_gguf(base / "m.gguf", layers=3, split=10 if parts else 0)
    center, normalization = ("affine", "none") if format == "gguf-adapter" else ("off", "calibrated")
    spectral_edit([Target(1, "mlp")], size=32, center=center, normalization=normalization).save(edit)
    first = min(path.name for path in base.iterdir())
    point = (sea_export.model.base, "scratch_directory")
    return FaultyExport(format, base, edit, outputs, temporary, overwrite, point, first)


def assert_complete(output: Path) -> None:
    """The files are those of the manifest, and have the digests that it tells."""
    digests = file_digests(output)
    assert digests.pop("sea_export.json", None), "there is no manifest"
    assert digests == json.loads((output / "sea_export.json").read_text(encoding="utf-8"))["files"]


def spread(kind: str, total: int, count: int) -> list[Fault]:
    """Faults of one kind, at places spread evenly over a number of operations."""
    return [Fault(kind, index * total // count) for index in range(count)]


def _state_of(directory: Path) -> dict[str, Any]:
    """All that reading does not change."""
    contents = contents_of(directory)
    times = {
        file: (status.st_mtime_ns, status.st_size, status.st_mode, status.st_ino)
        for file in contents
        for status in [(directory / file).stat()]
    }
    return {**contents, "times": times}
