"""What a killed process has left is told apart from what a living one works in, on file systems without locks too."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from sea_export import locks
from sea_export.locks import Locked, locked_directory, remove_leftovers, scratch_directory, taking_turns

FORK = multiprocessing.get_context("fork")


@contextmanager
def process_that_holds(path: Path) -> Iterator[Any]:
    """A process that works in a directory until the context ends, or until it is killed."""
    ours, theirs = FORK.Pipe()

    def work() -> None:
        with locked_directory(path):
            (path / "half").write_text("written")
            theirs.send("ready")
            theirs.poll(60)

    process = FORK.Process(target=work)
    process.start()
    assert ours.poll(60)
    try:
        yield process
    finally:
        ours.send("done")
        process.join(60)


def kill(process: Any) -> None:
    os.kill(process.pid, signal.SIGKILL)
    process.join(60)


def test_a_directory_belongs_to_one_living_process(tmp_path):
    path = tmp_path / "work"
    with process_that_holds(path):
        with pytest.raises(Locked), locked_directory(path):
            pass
        remove_leftovers("work", tmp_path)
        assert (path / "half").exists()
    assert not path.exists()


def test_what_a_killed_process_left_goes(tmp_path):
    path = tmp_path / "work"
    with process_that_holds(path) as process:
        kill(process)
    with locked_directory(path):
        assert (path / "half").exists()
    assert list(tmp_path.iterdir()) == []
    with process_that_holds(path) as process:
        kill(process)
    remove_leftovers("work", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_is_moved_keeps_its_lock_and_is_left_alone(tmp_path):
    path, moved = tmp_path / "work", tmp_path / "moved"
    with locked_directory(path):
        path.rename(moved)
        with pytest.raises(Locked), locked_directory(moved):
            pass
    assert moved.is_dir()
    with locked_directory(moved):
        pass


def test_a_scratch_directory_is_private_and_goes(tmp_path):
    (tmp_path / ".mine-old").mkdir()
    (tmp_path / ".other").mkdir()
    with scratch_directory(".mine-", tmp_path) as scratch:
        assert scratch.stat().st_mode & 0o777 == 0o700
        assert {path.name for path in tmp_path.iterdir()} == {scratch.name, ".other"}
    assert [path.name for path in tmp_path.iterdir()] == [".other"]


def test_links_and_files_are_not_taken_for_leftovers(tmp_path):
    (tmp_path / "target").mkdir()
    (tmp_path / ".mine-link").symlink_to(tmp_path / "target")
    (tmp_path / ".mine-file").write_text("x")
    remove_leftovers(".mine-", tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"target", ".mine-link", ".mine-file"}


def test_processes_take_turns(tmp_path):
    def work(number: int) -> None:
        with taking_turns(tmp_path):
            (tmp_path / "turns").open("a").write(f"{number} begins\n")
            (tmp_path / "turns").open("a").write(f"{number} ends\n")

    processes = [FORK.Process(target=work, args=(number,)) for number in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    turns = (tmp_path / "turns").read_text().splitlines()
    assert len(turns) == 8
    assert all(begin.split()[0] == end.split()[0] for begin, end in zip(turns[::2], turns[1::2], strict=True))


@pytest.fixture
def no_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that refuses every lock."""

    def refuse(descriptor: int, *, blocking: bool = True) -> bool:
        raise OSError("no locks here")

    monkeypatch.setattr(locks, "lock_descriptor", refuse)


@pytest.mark.usefixtures("no_locks")
def test_without_locks_a_directory_belongs_to_the_process_that_made_it(tmp_path):
    path = tmp_path / "work"
    with locked_directory(path):
        (path / "half").write_text("written")
        with pytest.raises(Locked), locked_directory(path):
            pass
        remove_leftovers("work", tmp_path)
        assert (path / "half").exists()
    assert not path.exists()
    with taking_turns(tmp_path):
        pass
    with scratch_directory(".mine-", tmp_path) as scratch:
        assert scratch.is_dir()
    assert list(tmp_path.iterdir()) == []
