"""The settings of published edits, as defaults of the options."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from sea_export.cli import main
from sea_export.demonstrations.demonstration_options import DemonstrationOptions
from sea_export.effect.effect_options import EffectOptions
from sea_export.fitting.presets import PRESETS
from sea_export.options import CaptureOptions, EditOptions, ExportOptions, FitOptions

CLASSES: tuple[Any, ...] = (
    DemonstrationOptions, FitOptions, CaptureOptions, EditOptions, EffectOptions, ExportOptions
)  # fmt: skip


# The primer does not fit into the context of the tiny model.
SHORT = ("--template", "qa")


def fit(checkpoint: Path, output: Path, rows: Path, *given: str) -> Result:
    command = ["fit", str(checkpoint), str(output), "--demonstrations", str(rows), "--no-measure", *given]
    return CliRunner().invoke(main, command)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    file = tmp_path / "rows.jsonl"
    lines = [
        {"prompt": f"Is {number} even?", "positive": "Yes, it is." * (number % 3 + 1), "negative": "No, it is not."}
        for number in range(40)
    ]
    file.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return file


def test_the_option_has_every_preset() -> None:
    command = main.get_command(click.Context(main), "fit")
    assert command is not None
    (option,) = [one for one in command.params if one.name == "preset"]
    assert isinstance(option.type, click.Choice)
    assert set(option.type.choices) == set(PRESETS)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_names_options_only(name: str) -> None:
    declared = {item.name for kind in CLASSES for item in fields(kind)}
    assert set(PRESETS[name]) <= declared


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_decides_the_fit(name: str, tiny_checkpoint: Path, rows: Path, tmp_path: Path) -> None:
    result = fit(tiny_checkpoint, tmp_path / "edit", rows, "--preset", name, *SHORT)
    assert result.exit_code == 0, result.output
    recorded = json.loads((tmp_path / "edit" / "sea_edit.json").read_text(encoding="utf-8"))["provenance"]["options"]
    found = {**recorded, **recorded["capture"], **recorded["edit"]}
    given = {option: value for option, value in PRESETS[name].items() if option in found and option != "template"}
    assert {option: found[option] for option in given} == given
    assert len(given) >= 7


def test_what_is_given_counts_more(tiny_checkpoint: Path, rows: Path, tmp_path: Path) -> None:
    given = ("--layers", "last:1", "--strength", "0.5", "--preset", "published-truthfulness", *SHORT)
    result = fit(tiny_checkpoint, tmp_path / "edit", rows, *given)
    assert result.exit_code == 0, result.output
    options = json.loads((tmp_path / "edit" / "sea_edit.json").read_text(encoding="utf-8"))["provenance"]["options"]
    assert options["layers"] == "last:1"
    assert options["edit"]["strength"] == 0.5
    assert options["edit"]["normalization"] == "sequence"
