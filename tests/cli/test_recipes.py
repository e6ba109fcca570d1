"""Every recipe is listed, shown, and runs on a small model."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result

from sea_export.cli import main

NAMES = sorted(file.name.removesuffix(".yaml") for file in (files("sea_export") / "data" / "recipes").iterdir())

# What is made smaller for a tiny model, for which primers are too long.
SMALLER = {
    "truthfulness": ("--limit", 8, "--strength", 0.1, "--no-measure", "--layers", "last:1"),
    "fairness": ("--limit", 8, "--strength", 0.1, "--no-measure", "--layers", "last:1"),
    "published": ("--limit", 4, "--no-measure", "--template", "qa"),
    "small-machine": ("--limit", 8, "--strength", 1, "--no-measure", "--layers", "last:1"),
    "tune": ("--trials", 2, "--limit", 60),
}


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_all_are_listed() -> None:
    result = run("recipes")
    assert result.exit_code == 0
    assert [line.split()[0] for line in result.output.splitlines()] == NAMES == sorted(SMALLER)


def test_an_unknown_one_is_refused() -> None:
    result = run("recipes", "show", "no")
    assert result.exit_code == 2
    assert "no: there is no such recipe" in result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_one_runs_as_it_is_shown(name: str, tiny_checkpoint: Path, tmp_path: Path) -> None:
    text = run("recipes", "show", name).output
    file = tmp_path / f"{name}.yaml"
    file.write_text(text, encoding="utf-8")
    recipe = yaml.safe_load(text)
    assert f"sea-export {recipe['command']} MODEL OUTPUT --config {file.name}" in text
    output = tmp_path / "out"
    result = run(recipe["command"], tiny_checkpoint, output, "--config", file, "--no-verify", *SMALLER[name])
    assert result.exit_code == 0, result.output
    manifest = json.loads((output / "sea_export.json").read_text(encoding="utf-8"))
    assert manifest["format"] == recipe.get("format", "custom-code")
    assert manifest["edit"]["options"]["method"] == recipe.get("method", manifest["edit"]["options"]["method"])
