"""What a signal does to a command."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from sea_export.cli import main, stopping
from sea_export.cli.stopping import Stopped, stoppable
from sea_export.edit import stored_edit
from tests.helpers.messages import assert_names

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.fixture(autouse=True)
def heeded():
    """Has no signal be ignored, as an interrupt is in what a shell runs in the background."""
    before = {number: signal.signal(number, signal.SIG_DFL) for number in (signal.SIGTERM, signal.SIGHUP)}
    before[signal.SIGINT] = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def send(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_stops_once_and_does_not_interrupt_the_cleaning_up(number):
    before = [signal.getsignal(each) for each in SIGNALS]
    cleaned = []

    def work() -> None:
        with stoppable():
            try:
                send(number)
            finally:
                for each in SIGNALS:
                    send(each)
                    cleaned.append(each)

    with pytest.raises(Stopped, match=number.name) as stopped:
        work()
    assert len(cleaned) == len(SIGNALS)
    assert stopped.value.exit_code == 128 + number
    assert [signal.getsignal(each) for each in SIGNALS] == before


def test_a_stop_that_was_swallowed_can_be_repeated(monkeypatch):
    monkeypatch.setattr(stopping, "_IMPATIENCE_SECONDS", 0)
    with stoppable():
        for _ in range(2):
            with pytest.raises(Stopped):
                send(signal.SIGTERM)


def test_signals_that_are_ignored_stay_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stoppable():
            send(signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("options", [[], ["--debug"]], ids=str)
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_command_that_is_stopped_says_so_in_one_line(number, status, options, monkeypatch, tmp_path):
    monkeypatch.setattr(stored_edit, "read_stored_edit", lambda directory: send(number))
    result = CliRunner().invoke(main, [*options, "save", "edit", str(tmp_path / "out")])
    assert_names(result.output, "Error: ", number.name)
    assert (result.output.count("\n"), result.exit_code) == (1, status)


@pytest.mark.parametrize("error", [RecursionError("too deep"), ImportError("half a module"), OSError("closed")])
def test_an_error_that_a_stop_has_caused_is_told_as_the_stop(error, monkeypatch, tmp_path):
    """Libraries turn a stop during their import into any error."""

    def fail(directory):
        try:
            send(signal.SIGINT)
        except Stopped as stopped:
            raise error from stopped

    monkeypatch.setattr(stored_edit, "read_stored_edit", fail)
    result = CliRunner().invoke(main, ["save", "edit", str(tmp_path / "out")])
    assert (result.output, result.exit_code) == ("Error: stopped by SIGINT\n", 130)


INTERRUPTED_IMPORT = """
import os, signal, sys
class Interrupting:
    def find_spec(self, name, path=None, target=None):
        if name == "click":
            os.kill(os.getpid(), signal.SIGINT)
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.meta_path.insert(0, Interrupting())
from sea_export.__main__ import run
run()
"""


def test_an_interrupt_while_modules_are_imported_is_quiet():
    done = subprocess.run([sys.executable, "-c", INTERRUPTED_IMPORT], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")


def test_what_the_system_refuses_is_told_in_one_line_too(monkeypatch, tmp_path):
    facts = "No space left on device", "x/y"
    error = OSError(28, *facts)

    def fails(directory: Path) -> None:
        raise error

    monkeypatch.setattr(stored_edit, "read_stored_edit", fails)
    arguments = ["save", "edit", str(tmp_path / "out")]
    result = CliRunner().invoke(main, arguments)
    assert_names(result.output, "Error: ", *facts)
    assert (result.output.count("\n"), result.exit_code) == (1, 1)
    result = CliRunner().invoke(main, ["--debug", *arguments])
    assert "Traceback (most recent call last)" in result.stderr
    assert_names(result.stderr.splitlines()[-1], "Error: ", *facts)
    assert result.exit_code == 1
