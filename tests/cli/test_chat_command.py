"""`sea-export chat`: with lines from a pipe, and at a terminal."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from transformers import PreTrainedModel

import sea_export
from sea_export.cli import main, stopping
from sea_export.cli.stopping import Stopped, first_interrupt_kept, stoppable
from sea_export.edit.spectral_edit import SpectralEdit
from sea_export.files.digests import file_digests
from tests.helpers.messages import assert_names

PROMPT = "Is the moon made of rock?"


@pytest.fixture(scope="module")
def edit(
    llama: PreTrainedModel, fit_tiny: Callable[..., SpectralEdit], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    directory = tmp_path_factory.mktemp("chat") / "edit"
    fit_tiny(llama).save(directory)
    return directory


def run(*arguments: object, lines: str | bytes = "") -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments], input=lines)


# Lines of a file or a pipe


@pytest.fixture
def chat(edit: Path, tiny_checkpoint: Path) -> Callable[..., Result]:
    def chat(*lines: str, options: tuple[object, ...] = ()) -> Result:
        return run("chat", edit, "--base", tiny_checkpoint, "--new-tokens", 6, *options, lines="\n".join(lines))

    return chat


def answers(result: Result) -> list[str]:
    """What was answered, base and edited in turn."""
    assert result.exit_code == 0, result.output
    lines = re.findall(r"^\S.*(?:\n  .*)*", result.stdout, re.MULTILINE)  # an answer's own lines are indented
    return [line for line in lines if line.startswith(("base: ", "edited: "))]


def test_lines_in_lines_out(chat: Callable[..., Result]) -> None:
    base, edited = answers(chat(PROMPT))
    assert base.removeprefix("base: ") != edited.removeprefix("edited: ")
    assert answers(chat("", PROMPT, "", "/quit", PROMPT)) == [base, edited], "nothing is read after /quit"
    assert "[cut off]" in base
    strengths = answers(chat(PROMPT, "/strength 0", "/again", "/strength own", "/again", "/reset", PROMPT))
    assert strengths[:2] == [base, edited]
    assert strengths[3].removeprefix("edited: ") == base.removeprefix("base: ")
    assert strengths[4:] == [base, edited] * 2
    assert answers(chat(PROMPT, options=("--strength", 0)))[1] == base.replace("base", "edited", 1)
    assert answers(chat("/layers 2", PROMPT)) == answers(chat(PROMPT, options=("--layers", "2")))
    assert answers(chat("/layers 2", PROMPT))[1] != edited
    assert answers(chat("/layers 2", "/layers all", PROMPT)) == [base, edited]
    assert answers(chat("/system Be brief.", PROMPT)) == answers(chat(PROMPT, options=("--system", "Be brief.")))
    assert answers(chat("/system Be brief.", PROMPT))[0] != base
    assert answers(chat("/system Be brief.", "/system", PROMPT)) == [base, edited]
    assert answers(chat("//quit"))


def test_commands_tell_what_holds(chat: Callable[..., Result]) -> None:
    result = chat("/strength", "/strength 0.6", "/layers last:2", "/system Be brief.", "/help")
    assert_names(result.stdout, "strength 0.6", "layers 2-3", "Be brief.")
    assert all(name in result.stdout for name in ("/strength [S]", "/save OUTPUT", "/quit"))


@pytest.mark.parametrize(
    ("line", "facts"),
    [
        ("/strenght 1", ["/strenght", "/strength"]),
        ("/exit", ["/exit", "/help"]),
        ("/strength strong", ["/strength", "strong"]),
        ("/strength nan", ["/strength", "nan"]),
        ("/layers 9", ["/layers", "9"]),
        ("/again", ["no prompt"]),
        ("/save", ["/save"]),
        ("/save no/such/place", ["place"]),
    ],
)
def test_the_first_error_ends_a_script(line: str, facts: list[str], chat: Callable[..., Result]) -> None:
    result = chat(line, "/help")
    assert result.exit_code == 2
    assert result.stdout == ""
    assert_names(result.stderr, *facts)
    assert result.stderr.count("\n") == 1
    assert "--strength" not in result.stderr


def test_lines_that_are_no_text(edit: Path, tiny_checkpoint: Path) -> None:
    result = run("chat", edit, "--base", tiny_checkpoint, lines=b"\xff\n")
    assert result.exit_code == 2
    assert_names(result.stderr, "the prompt", "UTF-8")


def test_saving_is_save(edit: Path, tiny_checkpoint: Path, tmp_path: Path, chat: Callable[..., Result]) -> None:
    tried, baked = tmp_path / "tried", tmp_path / "baked"
    result = chat("/strength 0.6", "/layers last:2", f"/save {tried}")
    assert result.exit_code == 0, result.output
    command = next(line for line in result.stdout.splitlines() if line.startswith("  sea-export save "))
    arguments = command.replace(str(tried), str(baked)).split()[1:]
    assert arguments == [
        *("save", str(edit), str(baked), "--base", str(tiny_checkpoint), "--strength", "0.6", "--only", "last:2")
    ]
    assert run(*arguments).exit_code == 0
    digests = file_digests(tried)
    assert digests == file_digests(baked)
    assert f"SHA-256 {digests['model.safetensors']}  model.safetensors" in result.stdout


@pytest.mark.parametrize(
    ("options", "facts"),
    [
        (("--strength", "nan"), ["--strength"]),
        (("--layers", "0"), ["--layers"]),
        (("--port", "80"), ["--port", "--web"]),
        (("--chat-template-kwargs", "[]"), ["--chat-template-kwargs"]),
        (("--layerwise",), ["--layerwise"]),
        (("--base", "no/such"), ["no/such"]),
    ],
)
def test_what_is_refused_before_anything_is_loaded(
    options: tuple[str, ...], facts: list[str], edit: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    base = () if options[0] == "--base" else ("--base", tiny_checkpoint)
    result = run("chat", edit, *base, *options, lines=PROMPT)
    assert result.exit_code == 2
    assert_names(result.stderr, *facts)


def test_a_model_without_an_edit(tiny_checkpoint: Path) -> None:
    result = run("chat", tiny_checkpoint)
    assert result.exit_code == 2
    assert_names(result.stderr, tiny_checkpoint, "--base")


# A terminal


def _as_at_a_terminal() -> None:
    """Makes the standard input the terminal of a new process, which obeys Ctrl-C even if the tests ignore it."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Terminal:
    """The program at a terminal of its own."""

    def __init__(self, arguments: list[str], width: int) -> None:
        self.screen = ""
        self._main, other = pty.openpty()
        fcntl.ioctl(other, termios.TIOCSWINSZ, struct.pack("HHHH", 40, width, 0, 0))
        environment = {**os.environ, "TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1", "OMP_NUM_THREADS": "1"}
        environment["PYTHONPATH"] = str(Path(sea_export.__file__).parents[1])
        self._process = subprocess.Popen(
            [sys.executable, "-m", "sea_export", *arguments],
            stdin=other,
            stdout=other,
            stderr=other,
            env=environment,
            start_new_session=True,
            preexec_fn=_as_at_a_terminal,
        )
        os.close(other)

    def send(self, keys: str) -> None:
        self.screen = ""
        os.write(self._main, keys.encode())

    def wait_for(self, pattern: str, seconds: float = 60) -> str:
        """All that was printed since the last keys, once it has the pattern."""
        deadline = time.monotonic() + seconds
        while not re.search(pattern, self.screen):
            ready, _, _ = select.select([self._main], [], [], max(deadline - time.monotonic(), 0))
            assert ready, f"{pattern} does not come: {self.screen}"
            try:
                read = os.read(self._main, 65536).decode(errors="replace")
            except OSError as error:
                raise AssertionError(f"{pattern} has not come: {self.screen}") from error
            self.screen += re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\x08", "", read)  # without what moves the cursor
        return self.screen

    def ended(self, seconds: float = 60) -> int:
        """The exit status. What is printed until then is on the screen."""
        deadline = time.monotonic() + seconds
        while select.select([self._main], [], [], max(deadline - time.monotonic(), 0))[0]:
            try:
                part = os.read(self._main, 65536)
            except OSError:
                break  # the other end is closed
            self.screen += part.decode(errors="replace")
        return self._process.wait(max(deadline - time.monotonic(), 1))

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        os.close(self._main)


@pytest.fixture
def at_terminal(edit: Path, tiny_checkpoint: Path) -> Iterator[Callable[..., Terminal]]:
    opened: list[Terminal] = []

    def start(*options: object, width: int = 100) -> Terminal:
        arguments = ["chat", str(edit), "--base", str(tiny_checkpoint), *map(str, options)]
        opened.append(Terminal(arguments, width))
        return opened[-1]

    yield start
    for one in opened:
        one.close()


READY = r"[\r\n]>\s*$"
"""The end of the screen when a line can be written."""


@pytest.mark.slow
def test_a_chat_at_a_terminal(
    at_terminal: Callable[..., Terminal], tmp_path: Path, edit: Path, tiny_checkpoint: Path
) -> None:
    terminal = at_terminal("--new-tokens", 6)
    assert_names(terminal.wait_for(READY), tiny_checkpoint.name, edit.name)
    terminal.send(f"{PROMPT}\r")
    table = terminal.wait_for(f"\u2514[\\s\\S]*{READY}")
    heading = next(line for line in table.splitlines() if tiny_checkpoint.name in line and edit.name in line)
    assert heading.index(tiny_checkpoint.name) < heading.index(edit.name), "side by side"
    assert "cut off" in table
    terminal.send("/strenght 0.6\r")
    assert_names(terminal.wait_for(f"Error: [\\s\\S]*{READY}"), "/strenght", "/strength")
    terminal.send("/strength 0.6\r")
    assert_names(terminal.wait_for(f"The edit has[\\s\\S]*{READY}"), "strength 0.6")
    terminal.send(f"/save {tmp_path / 'tried'}\r")
    assert_names(terminal.wait_for(f"SHA-256[\\s\\S]*{READY}"), "model.safetensors")
    sea_export.save(SpectralEdit.load(edit).with_strength(0.6), tiny_checkpoint, tmp_path / "baked")
    assert file_digests(tmp_path / "tried") == file_digests(tmp_path / "baked")
    terminal.send("/quit\r")
    assert terminal.ended() == 0


def test_interrupts(at_terminal: Callable[..., Terminal]) -> None:
    """The first stops an answer. At the prompt it empties a line that has begun, and leaves where there is none."""
    terminal = at_terminal("--new-tokens", 100_000, width=60)
    terminal.wait_for(READY)
    terminal.send(f"{PROMPT}\r")
    terminal.wait_for("\u2514")
    terminal.send("\x03")
    terminal.wait_for(f"Stopped[\\s\\S]*{READY}")
    terminal.send("/quit")
    terminal.wait_for("/quit")
    terminal.send("\x03")
    time.sleep(0.5)
    terminal.send("/strength\r")
    terminal.wait_for(f"The edit has strength[\\s\\S]*{READY}")
    terminal.send("\x03")
    assert terminal.ended() == 0
    assert "Traceback" not in terminal.screen
    assert "Error" not in terminal.screen


def test_the_page_ends_quietly(edit: Path, tiny_checkpoint: Path, at_terminal: Callable[..., Terminal]) -> None:
    terminal = at_terminal("--web")
    shown = terminal.wait_for(r"http://127\.0\.0\.1:\d+/[\w-]{40,}/\s")
    assert "Ctrl-C" in shown
    terminal.send("\x03")
    assert terminal.ended() == 0
    assert terminal.screen.strip() in ("", "^C")


@pytest.fixture
def obeyed_interrupts() -> Iterator[None]:
    """Ctrl-C is obeyed, even if the tests were started in the background, where it is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("obeyed_interrupts")
def test_a_second_interrupt_does_what_it_did(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopping, "_IMPATIENCE_SECONDS", 0)
    with stoppable():
        with first_interrupt_kept() as came:
            assert not came()
            os.kill(os.getpid(), signal.SIGINT)
            assert came()
            with pytest.raises(Stopped):
                os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(Stopped), first_interrupt_kept():
            os.kill(os.getpid(), signal.SIGTERM)


def test_an_ignored_interrupt_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with first_interrupt_kept() as came:
            os.kill(os.getpid(), signal.SIGINT)
            assert not came()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
