"""`--progress`: how far a command has come, for programs as objects of JSON, a line each."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from sea_export.cli import main, stages
from sea_export.cli.progress import counting_progress, fit_progress, saving_progress
from sea_export.cli.terminal import waiting
from sea_export.fitting.distributed import ALONE
from tests.helpers.parameters import UNMEASURED
from tests.helpers.schemas import validated


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def objects(text: str) -> list[dict[str, Any]]:
    """The lines of progress, each in the form of its schema."""
    return [validated(line, "progress") for line in text.splitlines() if line.startswith("{")]


def counts(found: list[dict[str, Any]]) -> list[tuple[str, int, int]]:
    return [(one["stage"], one["done"], one["total"]) for one in found]


@pytest.fixture
def json_lines() -> Iterator[None]:
    """What is shown in it is shown as `--progress json` shows it."""
    with click.Context(main) as context:
        context.meta["sea_export.progress"] = "json"
        yield


@pytest.mark.usefixtures("json_lines")
def test_stages_begin_go_on_and_end(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "_SECONDS_BETWEEN_OBJECTS", 0.0)
    with counting_progress("a count", 3) as advance:
        advance(1)
        advance(2)
    with saving_progress("Writing", 5_000) as advance:
        advance(5_000)
    with waiting("a wait \x1b[2J"), saving_progress("Verifying", 0):
        pass
    captured = capsys.readouterr()
    assert captured.out == ""
    found = objects(captured.err)
    assert counts(found) == [
        *(("a count", done, 3) for done in (0, 1, 3, 3)),
        *(("Writing", done, 5_000) for done in (0, 5_000, 5_000)),
        *((name, 0, 1) for name in ("a wait \x1b[2J", "Verifying")),
        *((name, 1, 1) for name in ("Verifying", "a wait \x1b[2J")),
    ]
    assert {one["stage"]: one["unit"] for one in found} == {
        "a count": "items",
        "Writing": "bytes",
        "Verifying": "stages",
        "a wait \x1b[2J": "stages",
    }
    assert "\x1b" not in captured.err
    assert all(later["seconds"] >= 0 for later in found)


@pytest.mark.usefixtures("json_lines")
def test_a_long_stage_is_told_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    with counting_progress("a count", 1000) as advance:
        for _ in range(1000):
            advance(1)
    assert 2 <= len(objects(capsys.readouterr().err)) < 100


@pytest.mark.usefixtures("json_lines")
def test_what_follows_the_reading_is_a_stage_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    with fit_progress(4, ALONE) as advance:
        advance(2)
        advance(2)
    found = counts(objects(capsys.readouterr().err))
    assert found[0] == ("Reading demonstrations", 0, 4)
    assert found[-3:] == [("Reading demonstrations", 4, 4), ("Fitting", 0, 1), ("Fitting", 1, 1)]


@pytest.mark.usefixtures("json_lines")
def test_a_stage_that_fails_does_not_end(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="broken"), waiting("a wait"):
        raise ValueError("broken")
    assert counts(objects(capsys.readouterr().err)) == [("a wait", 0, 1)]


@pytest.mark.parametrize(("form", "told"), [("json", True), ("none", False), ("auto", False)])
def test_commands_tell_their_stages(form: str, told: bool, tiny_checkpoint: Path, tmp_path: Path) -> None:
    options = ("--limit", 8, "--layers", "last:1", *UNMEASURED, "--progress", form, "--json", "-")
    result = run("fit", tiny_checkpoint, tmp_path / "edit", *options)
    assert result.exit_code == 0, result.output
    names = {one["stage"] for one in objects(result.stderr)}
    assert ({"Reading demonstrations", "Fitting"} <= names) == told
    assert json.loads(result.stdout)["schema"] == "fit"


def test_no_other_form_is_taken() -> None:
    result = run("fit", "model", "edit", "--progress", "dots")
    assert result.exit_code == 2
    assert "--progress" in result.stderr
