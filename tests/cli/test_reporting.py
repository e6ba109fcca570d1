"""What the command line says besides its results: failures, notes, progress; and that text of others stays text."""

from __future__ import annotations

import logging
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from sea_export.cli import main
from sea_export.model.checkpoint import Checkpoint
from sea_export.text import visible
from tests.helpers.messages import assert_names

GUARANTEE = "A failure is told in one or two sentences, and with --debug with its traceback and environment"
TEXT_PROMISE = "Text of demonstrations and answers is shown as text, and commands no terminal, page or table"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def error_lines(result: Result) -> list[str]:
    return [line for line in result.stderr.splitlines() if line.strip()]


class Surprise(RuntimeError):
    pass


FAILURES = {
    "input": (None, 2, ["nowhere"]),
    "surprise": (Surprise("a thing broke\nin two lines"), 1, ["Surprise", "a thing broke", "--debug"]),
    "no memory": (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), 1, ["memory", "--layerwise"]),
    "python's memory": (MemoryError(), 1, ["memory", "--layerwise"]),
    "full disk": (OSError(28, "No space left on device"), 1, ["No space left on device"]),
}


def act_in_diff(act: Callable[[], None], directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`diff nowhere elsewhere` finds both directories, and calls `act` where it would open the first."""
    for name in ("nowhere", "elsewhere"):
        (directory / name).mkdir()
    monkeypatch.chdir(directory)
    monkeypatch.setattr(Checkpoint, "open", lambda directory: act())


@pytest.fixture(params=FAILURES)
def failure(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[int, list[str]]:
    """`diff` fails in some way; gives the exit status and what the error must name."""
    error, status, facts = FAILURES[request.param]
    if error is not None:

        def fail() -> None:
            raise error

        act_in_diff(fail, tmp_path, monkeypatch)
    return status, facts


@pytest.mark.guarantee(GUARANTEE)
def test_a_failure_is_one_line(failure: tuple[int, list[str]]) -> None:
    status, facts = failure
    result = run("diff", "nowhere", "elsewhere")
    assert result.exit_code == status
    (line,) = error_lines(result)
    assert line.startswith("Error: ")
    assert_names(line, *facts)
    assert line.count(". ") <= 2
    assert result.stdout == ""


@pytest.mark.guarantee(GUARANTEE)
@pytest.mark.parametrize(
    "arguments", [("--debug", "diff", "nowhere", "elsewhere"), ("diff", "nowhere", "elsewhere", "--debug")]
)
def test_debug_gives_traceback_and_environment(failure: tuple[int, list[str]], arguments: tuple[str, ...]) -> None:
    status, facts = failure
    result = run(*arguments)
    assert result.exit_code == status
    assert "Traceback (most recent call last)" in result.stderr
    for environment in (
        "python: ",
        "platform: ",
        "sea-export 0",
        "torch ",
        "devices: cpu",
        "command: diff",
        "b=PosixPath('elsewhere')",
    ):
        assert environment in result.stderr, environment
    assert_names(error_lines(result)[-1], *facts)  # the sentence comes last, where it is seen


def test_wrong_usage_stays_usage() -> None:
    result = run("diff")
    assert result.exit_code == 2
    assert "Usage:" in result.stderr
    result = run("--verbose", "diff", "nowhere", "elsewhere", "--quiet")
    assert result.exit_code == 2
    assert_names(result.stderr, "--verbose", "--quiet")


@pytest.mark.parametrize("command", sorted(main.list_commands(None)))  # type: ignore[arg-type]
def test_every_command_takes_the_options(command: str) -> None:
    text = run(command, "--help").output
    assert all(option in text for option in ("--debug", "--verbose", "--quiet"))


@pytest.mark.parametrize(
    ("options", "shown"),
    [((), {"warning", "note"}), (("--verbose",), {"warning", "note", "detail"}), (("--quiet",), set())],
    ids=["default", "verbose", "quiet"],
)
@pytest.mark.parametrize("first", [True, False], ids=["of the program", "of the command"])
def test_how_much_is_said(
    options: tuple[str, ...], shown: set[str], first: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def talk() -> None:
        logger = logging.getLogger("sea_export.somewhere")
        logger.debug("detail")
        logger.info("note")
        logger.warning("warning")
        raise OSError("the end")

    act_in_diff(talk, tmp_path, monkeypatch)
    before = list(logging.getLogger().handlers), logging.getLogger().level
    command = ("diff", "nowhere", "elsewhere")
    result = run(*(*options, *command) if first else (*command, *options))
    assert {word for word in ("warning", "note", "detail") if word in result.stderr} == shown
    assert "the end" in result.stderr, "errors are always told"
    assert (list(logging.getLogger().handlers), logging.getLogger().level) == before, "the root logger is not ours"
    package = logging.getLogger("sea_export")
    assert package.handlers == []
    assert package.level == logging.NOTSET


TALK = """
import logging
from sea_export.cli.progress import counting_progress
from sea_export.cli.terminal import console, set_verbosity, waiting
with set_verbosity(verbose=False, quiet=QUIET):
    with waiting("a wait"), counting_progress("some work", 10) as advance:
        advance(5)
    logging.getLogger("sea_export").warning("careful")
    console.print("the result", style="red")
"""


def talk(code: str = TALK, *, terminal: bool, quiet: bool = False, **environment: str) -> str:
    """Everything that a process which shows progress, a warning and a result writes."""
    command = [sys.executable, "-c", code.replace("QUIET", str(quiet))]
    variables = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR")}
    variables |= {"TERM": "xterm-256color", "COLUMNS": "100", **environment}
    if not terminal:
        done = subprocess.run(command, capture_output=True, text=True, env=variables, check=True)
        return done.stdout + done.stderr
    ours, theirs = pty.openpty()
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=variables)
    os.close(theirs)
    written = b""
    while True:
        try:
            written += os.read(ours, 65536)
        except OSError:  # the other side is closed
            break
    os.close(ours)
    assert process.wait() == 0, written
    return written.decode()


@pytest.mark.slow
def test_progress_is_for_terminals() -> None:
    on_a_terminal = talk(terminal=True)
    assert all(words in on_a_terminal for words in ("a wait", "some work", "careful", "the result", "\x1b[31m"))
    for environment in ({}, {"FORCE_COLOR": "1"}):
        elsewhere = talk(terminal=False, **environment)
        assert "some work" not in elsewhere
        assert "a wait" not in elsewhere
        assert "careful" in elsewhere
        assert "the result" in elsewhere
        assert ("\x1b" in elsewhere) == bool(environment)


SLOW_TALK = """
import time
from sea_export.cli import stages
from sea_export.cli.progress import counting_progress, saving_progress
from sea_export.cli.terminal import set_verbosity, waiting
stages._SECONDS_BETWEEN_LINES = 0.2
with set_verbosity(verbose=False, quiet=QUIET):
    with counting_progress("some work", 10) as advance:
        advance(4)
        time.sleep(0.5)
    with saving_progress("Writing", 3_000_000) as advance:
        advance(1_000_000)
        time.sleep(0.3)
    for waits in (waiting("a wait"), saving_progress("Verifying", 0)):
        with waits:
            time.sleep(0.3)
"""


@pytest.mark.slow
def test_elsewhere_a_line_now_and_then_tells_how_far_it_is() -> None:
    said = talk(SLOW_TALK, terminal=False).splitlines()
    assert sum(line.startswith("some work: 4 of 10 (") for line in said) == 2
    assert [line.partition(" (")[0] for line in said[2:]] == ["Writing: 1.0 MB of 3.0 MB", "a wait", "Verifying"]
    assert talk(SLOW_TALK, terminal=False, quiet=True) == ""
    assert "some work: 4 of 10" not in talk(SLOW_TALK, terminal=True)


@pytest.mark.slow
def test_quiet_shows_no_progress_on_a_terminal() -> None:
    said = talk(terminal=True, quiet=True)
    assert "some work" not in said
    assert "careful" not in said
    assert "the result" in said


@pytest.mark.slow
def test_no_color_is_honoured() -> None:
    said = talk(terminal=True, NO_COLOR="1")
    assert "some work" in said
    assert not any(f"\x1b[{code}m" in said for code in (*range(30, 38), *range(90, 98)))
    assert "\x1b[38;" not in said


@pytest.mark.guarantee(TEXT_PROMISE)
def test_text_of_others_commands_no_terminal(count_case, capsys: pytest.CaptureFixture[str]) -> None:
    from rich.table import Table

    from sea_export.cli.terminal import console, print_error

    hostile = {
        "\x1b[2J\x1b]0;title\x07": "\\x1b[2J\\x1b]0;title\\x07",
        "a\rb\x08c\x7f": "a\\rb\\x08c\\x7f",
        "\x9b31m": "\\x9b31m",
        "user\u202eecilop": "user\\u202eecilop",
        "[red]bold[/red] [/] [link=http://a]": "[red]bold[/red] [/] [link=http://a]",
        ":smile: שלום é e\u0301 🙂": ":smile: שלום é e\u0301 🙂",
        "\ud800": "\\ud800",
    }
    for text, shown in hostile.items():
        count_case()
        console.print(text)
        table = Table("column")
        table.add_row(text)
        console.print(table)
        print_error(text)
        captured = capsys.readouterr()
        assert captured.out.count(shown) == 2, text
        assert shown in captured.err
        assert not {character for character in captured.out + captured.err if ord(character) < 32} - {"\n"}
    assert visible("line\n\ttext") == "line\n\ttext"
