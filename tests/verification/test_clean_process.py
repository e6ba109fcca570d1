"""The process that loads an export is one of its own, is begun early, and never outlives what it works for."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

import sea_export
from sea_export.cli.early_process import early_process
from sea_export.errors import SeaExportError
from sea_export.model.run_options import RunOptions
from sea_export.options import ExportOptions
from sea_export.verification import clean_process, verification_probe
from sea_export.verification.clean_process import CleanProcess
from tests.helpers.messages import naming

REQUEST = {"checkpoint": "/somewhere/out"}

WAIT = "import json, os, sys\nline = os.read(int(sys.argv[1]), 9999).decode().strip()\n"
ANSWER = WAIT + "if line: open(json.load(open(line))['answer'], 'w').write('done')\n"


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Puts a program in the place of the one that loads exports."""

    def use(text: str) -> None:
        (tmp_path / "program.py").write_text(text, encoding="utf-8")
        monkeypatch.setattr(clean_process, "_PROBE", tmp_path / "program.py")

    return use


# Processes that were there before a test: those of libraries that other tests have used.
_others: set[int] = set()


@pytest.fixture(autouse=True)
def no_process_is_left() -> Iterator[None]:
    _others.clear()
    _others.update(children())
    yield
    assert children() == []


def children() -> list[int]:
    return [child.pid for child in psutil.Process().children() if child.pid not in _others]


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.parametrize("early", [True, False])
def test_one_process_does_the_task(early: bool, program: Callable[[str], None]) -> None:
    program(ANSWER)
    with CleanProcess() as process:
        if early:
            process.begin()
        begun = children()
        answer = process.ask(REQUEST)()
        assert answer.read_text() == "done"
        assert len(begun) == early
    assert not answer.parent.exists()


@pytest.mark.parametrize(("number", "name"), [(9, "SIGKILL"), (11, "SIGSEGV"), (signal.SIGRTMIN + 3, "37")])
@pytest.mark.parametrize("early", [True, False])
def test_a_signal_and_what_to_do_are_named(number: int, name: str, early: bool, program: Callable[[str], None]) -> None:
    program(WAIT + f"os.kill(os.getpid(), {number})\n")
    with CleanProcess() as process:
        if early:
            process.begin()
        with pytest.raises(SeaExportError, match=naming("out", name, "--no-verify")):
            process.ask(REQUEST)()


def test_a_failure_is_told_by_its_last_line(program: Callable[[str], None]) -> None:
    program(WAIT + "print('x' * 200_000, file=sys.stderr)\nraise SystemExit('the head is missing.')\n")
    with CleanProcess() as process, pytest.raises(SeaExportError, match=naming("out", "it: the head is missing.")):
        process.ask(REQUEST)()


def test_one_that_dies_while_it_waits_is_told_and_replaced(
    program: Callable[[str], None], caplog: pytest.LogCaptureFixture
) -> None:
    program(ANSWER)
    with CleanProcess() as process:
        process.begin()
        (first,) = children()
        os.kill(first, signal.SIGKILL)
        wait_until(lambda: psutil.Process(first).status() == psutil.STATUS_ZOMBIE)
        assert process.ask(REQUEST)().read_text() == "done"
    (told,) = caplog.messages
    assert told.startswith("out: ")
    assert "SIGKILL" in told


def test_it_ends_with_the_context(program: Callable[[str], None]) -> None:
    program("import time\ntime.sleep(1000)\n")
    begun = []

    def interrupted() -> None:
        with CleanProcess() as process:
            process.begin()
            begun.extend(children())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert len(begun) == 1
    assert not psutil.pid_exists(begun[0])


def test_it_shares_nothing_with_this_process(program: Callable[[str], None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(sea_export.__file__).parent.parent))
    program(
        ANSWER + "import resource\nassert not sys.stdin.read() and 'sea_export' not in sys.modules\n"
        "assert sys.flags.isolated and os.getcwd() not in sys.path\n"
        "others = {name for name in os.listdir('/proc/self/fd') if int(name) > 2} - {sys.argv[1]}\n"
        "assert len(others) == 1, others\n"  # the one that listed them
    )
    with CleanProcess() as process:
        process.ask(REQUEST)()


@pytest.mark.parametrize(
    ("export", "run", "environment", "begun"),
    [
        (ExportOptions(), RunOptions(), {}, 1),
        (ExportOptions(verify=False), RunOptions(), {}, 0),
        (ExportOptions(), RunOptions(layerwise=True), {}, 0),
        (ExportOptions(), RunOptions(), {"WORLD_SIZE": "2"}, 0),
    ],
    ids=["verified", "not verified", "a layer at a time", "one of several"],
)
def test_none_is_begun_for_nothing(
    export: ExportOptions,
    run: RunOptions,
    environment: dict[str, str],
    begun: int,
    program: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    program(ANSWER)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with early_process(export, run):
        assert len(children()) == begun


def test_the_program_ends_when_nobody_needs_its_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """While it waits for its task, and while it does it."""
    monkeypatch.setattr(verification_probe, "answer", lambda file: time.sleep(1000))
    for task in ("", "task.json\n"):
        read_end, write_end = os.pipe()
        process = os.fork()
        if process == 0:
            os.close(write_end)
            verification_probe.main(read_end)
            os._exit(0)
        os.close(read_end)
        os.write(write_end, task.encode())
        os.close(write_end)
        assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 1


def test_it_ends_when_this_process_is_killed(tmp_path: Path) -> None:
    """With the program as it is, at whatever point of its imports it is."""
    text = (
        "import time\nfrom sea_export.verification.clean_process import CleanProcess\n"
        "with CleanProcess() as process:\n    process.begin()\n    print('begun', flush=True)\n    time.sleep(1000)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(sea_export.__file__).parent.parent), "TMPDIR": str(tmp_path)}
    with subprocess.Popen([sys.executable, "-P", "-c", text], stdout=subprocess.PIPE, env=environment) as parent:
        assert parent.stdout is not None
        parent.stdout.readline()
        (child,) = psutil.Process(parent.pid).children()
        parent.kill()
    wait_until(lambda: not child.is_running())
