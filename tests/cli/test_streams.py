"""Whatever is at the other end of the standard streams, a command does its work and ends with the same status."""

from __future__ import annotations

import io
import os
import pty
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from sea_export.cli import main
from sea_export.edit.spectral_edit import SpectralEdit
from tests.helpers.messages import assert_names

CONTROL = ("\x1b[31m", "\x9b31m", "\x07", "\u202ea", "a\rb")


def status_of(arguments: Sequence[object], *streams: int | None, encoding: str = "utf-8") -> int:
    """The exit status of a command in a process of its own, with descriptors for its output and its errors.

    A descriptor that is not given is that of /dev/null, and None is a closed one.
    """
    process = os.fork()
    if process == 0:
        try:
            null = os.open(os.devnull, os.O_WRONLY)
            given = [*streams, *[null] * (2 - len(streams))]
            for number, descriptor in enumerate(given, start=1):
                os.dup2(null if descriptor is None else descriptor, number)
            for number, descriptor in enumerate(given, start=1):
                if descriptor is None:
                    os.close(number)
            sys.stdout = sys.__stdout__ = _stream(1, given[0], encoding)
            sys.stderr = sys.__stderr__ = _stream(2, given[1], encoding)
            main([str(argument) for argument in arguments], "sea-export")
        except SystemExit as end:
            os._exit(end.code if isinstance(end.code, int) else 1)
        finally:
            os._exit(70)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def _stream(number: int, descriptor: int | None, encoding: str) -> io.TextIOWrapper | None:
    """A stream as Python makes it at its start."""
    if descriptor is None:
        return None
    return io.TextIOWrapper(open(number, "wb", closefd=False), encoding, line_buffering=number == 2)


def unread_pipe() -> int:
    end, start = os.pipe()
    os.close(end)
    return start


@pytest.fixture(scope="module")
def edit(fit_tiny, llama, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("edits") / "edit"
    fitted: SpectralEdit = fit_tiny(llama)
    fitted.save(directory)
    return directory


@pytest.mark.parametrize("streams", [(None,), (None, None), "unread", "gone"], ids=str)
def test_streams_that_are_closed(streams: tuple[int | None, ...] | str, edit: Path, tmp_path: Path) -> None:
    """From the start, by a reader that has ended, and by a terminal that has gone."""
    if streams == "unread":
        streams = (unread_pipe(), unread_pipe())
    elif streams == "gone":
        ours, theirs = pty.openpty()
        os.close(ours)
        streams = (theirs, theirs)
    for arguments, status in (
        (["--version"], 0),
        (["fit", "--help"], 0),
        (["inspect", edit], 0),
        (["inspect", tmp_path / "absent"], 2),
        (["--nonesuch"], 2),
    ):
        assert status_of(arguments, *streams) == status, arguments


def test_work_goes_on_when_nobody_reads_any_more(edit: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    arguments = ["save", edit, tmp_path / "out", "--base", tiny_checkpoint, "--force", "--no-verify"]
    assert status_of(arguments, unread_pipe(), unread_pipe()) == 0
    assert (tmp_path / "out" / "sea_export.json").is_file()
    assert status_of([*arguments, "--overwrite"], None, None) == 0


def test_no_file_gets_the_number_of_a_closed_stream(edit: Path, tmp_path: Path) -> None:
    picture = tmp_path / "edit.svg"
    assert status_of(["inspect", edit, "--plot", picture], None, None) == 0
    assert picture.read_text(encoding="utf-8").endswith("</svg>\n")


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "iso8859-5", "utf-8"])
def test_letters_that_a_terminal_does_not_have(encoding: str, edit: Path, tmp_path: Path) -> None:
    for arguments in (["inspect", edit], ["fit", "--help"], ["inspect", tmp_path / "φ"]):
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as told:
            status = status_of(arguments, out.fileno(), told.fileno(), encoding=encoding)
            assert status == (2 if arguments[-1] == tmp_path / "φ" else 0)
            out.seek(0)
            told.seek(0)
            shown = (out.read() + told.read()).decode("utf-8" if encoding == "ascii" else encoding)
            if arguments != ["inspect", edit]:  # its table has no such letters, but lines of a box
                assert "σ" in shown or "φ" in shown or "\\u03c" in shown  # to ASCII, Click writes UTF-8
            assert "Traceback" not in shown


@pytest.mark.parametrize("columns", [1, 7, 30])
def test_narrow_terminals(columns: int, edit: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    ours, theirs = pty.openpty()
    os.set_blocking(ours, False)
    assert status_of(["inspect", edit], theirs, theirs) == 0
    assert status_of(["--help"], theirs, theirs) == 0
    assert os.read(ours, 65536)
    os.close(ours)
    os.close(theirs)


def test_a_full_disk_is_no_success(edit: Path) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    for arguments in (["--version"], ["fit", "--help"], ["inspect", edit]):
        with tempfile.TemporaryFile() as told:
            assert status_of(arguments, full, told.fileno()) == 1, arguments
            told.seek(0)
            message = told.read().decode()
        assert_names(message, "Error: No space left on device")
        assert message.count("\n") == 1
    assert status_of(["inspect", edit], os.open(os.devnull, os.O_WRONLY), full) == 0
    os.close(full)


def test_a_slow_reader_is_waited_for(edit: Path) -> None:
    """A pipe that is full, and on which nobody may wait, as some programs leave it."""
    end, start = os.pipe()
    os.set_blocking(start, False)
    while True:
        try:
            os.write(start, b"x" * 4096)
        except BlockingIOError:
            break
    reader = os.fork()
    if reader == 0:
        os.close(start)
        while os.read(end, 4096):
            pass
        os._exit(0)
    os.close(end)
    assert status_of(["inspect", edit], start) == 0
    os.close(start)
    os.waitpid(reader, 0)


@pytest.mark.parametrize("hostile", CONTROL)
def test_errors_of_usage_command_no_terminal(hostile: str) -> None:
    for arguments in (
        [hostile],
        [f"--{hostile}"],
        ["fit", f"--{hostile}", "model", "edit"],
        ["fit", "model", "edit", "--seed", hostile],
        ["fit", "model", "edit", "--method", hostile],
        ["diff", "a", "b", hostile],
    ):
        with tempfile.TemporaryFile() as told:
            assert status_of(arguments, told.fileno(), told.fileno()) == 2, arguments
            told.seek(0)
            message = told.read().decode()
        assert hostile not in message
        assert not {letter for letter in message if not letter.isprintable()} - {"\n"}


@pytest.mark.parametrize("arguments", [["fit", "m\udcff", "edit"], ["compare", "a", "b", "--prompt", "x\ud800"]])
def test_arguments_that_are_no_text(arguments: list[str]) -> None:
    with tempfile.TemporaryFile() as told:
        assert status_of(arguments, told.fileno(), told.fileno()) == 2
        told.seek(0)
        assert_names(told.read().decode(), "UTF-8")
