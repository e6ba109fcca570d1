"""Torch gets as many threads as help, unless the user says how many."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from sea_export.cli import main
from sea_export.model import threads as module
from sea_export.model.threads import half_of_the_threads, use_threads
from tests.helpers.parameters import UNMEASURED


@pytest.fixture(autouse=True)
def several_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine with four processors, on which nobody says how many are used."""
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("seconds_of_four", "count"), [(0.3, 4), (0.85, 4), (0.95, 1), (2.0, 1)])
def test_all_of_them_if_they_are_faster(seconds_of_four: float, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_seconds", lambda threads: seconds_of_four if threads == 4 else 1.0)
    assert use_threads(None).count == torch.get_num_threads() == count


def test_what_the_user_says_is_done_without_a_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(module, "_seconds")
    assert use_threads(3).count == torch.get_num_threads() == 3
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    found = use_threads(None)
    assert (found.count, torch.get_num_threads()) == (3, 3)
    assert "OMP_NUM_THREADS" in found.reason
    assert use_threads(2).count == torch.get_num_threads() == 2


def test_one_processor_needs_no_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.delattr(module, "_seconds")
    assert use_threads(None).count == 1


def test_a_trial_is_short() -> None:
    assert module._seconds(1) < 1


def test_a_command_uses_and_records_what_it_is_told(tiny_checkpoint: Path, tmp_path: Path) -> None:
    given = ["fit", tiny_checkpoint, tmp_path / "edit", "--layers", "last:1", "--limit", "8", *UNMEASURED]
    result = CliRunner().invoke(main, [*map(str, given), "--threads", "2", "--verbose"])
    assert result.exit_code == 0, result.output
    assert "2 threads: as given" in result.output
    assert '"threads": 2' in (tmp_path / "edit" / "sea_edit.json").read_text()


@pytest.mark.parametrize("threads", ["0", "-1", "many", "1025", "2147483648", "99999999999999999999"])
def test_numbers_of_threads_that_are_none(threads: str) -> None:
    for command in (["fit", "m", "e"], ["verify", "o"], ["reproduce", "m", "o"], ["doctor"]):
        result = CliRunner().invoke(main, [*command, "--threads", threads])
        assert result.exit_code == 2
        assert "--threads" in result.output


def test_another_process_gets_half_of_the_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    for usable, threads, each in ((4, 4, 2), (4, 1, 1), (2, 2, 1), (1, 1, 1), (3, 3, 1), (64, 4, 4)):
        torch.set_num_threads(threads)
        monkeypatch.setattr(module, "processors", lambda usable=usable: usable)
        with half_of_the_threads() as others:
            assert (torch.get_num_threads(), others) == (each, each)
            assert torch.get_num_threads() + others <= max(usable, 2)
        assert torch.get_num_threads() == threads
    assert module.processors() >= 1
