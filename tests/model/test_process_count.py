"""The number of processes of a job is what has started it says, or one sentence says that it is none."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from sea_export.cli import main
from sea_export.errors import InputError
from sea_export.model.process_count import process_count


@pytest.mark.parametrize(("told", "count"), [(None, 1), ("", 1), ("1", 1), ("16", 16)])
def test_what_is_told_counts(told: str | None, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    if told is not None:
        monkeypatch.setenv("WORLD_SIZE", told)
    assert process_count() == count


@pytest.mark.parametrize("told", ["two", "0", "-1", "1.5", " ", "\u0663", "9" * 5000])
def test_what_is_no_number_is_refused(told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", told)
    with pytest.raises(InputError, match="WORLD_SIZE"):
        process_count()


def test_a_command_says_so_in_a_sentence(tiny_checkpoint, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "two")
    result = CliRunner().invoke(main, ["fit", str(tiny_checkpoint), str(tmp_path / "edit")])
    assert result.exit_code == 2
    assert result.stderr.strip().splitlines()[-1].startswith("Error: WORLD_SIZE: ")
