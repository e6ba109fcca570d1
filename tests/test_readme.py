"""Sentences of README.md that say what the program does, tried one by one. `test_documents.py` runs its code."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from sea_export.demonstrations.demonstration_options import DemonstrationOptions
from sea_export.demonstrations.load import load_demonstrations
from sea_export.effect.effect_options import EffectOptions
from sea_export.errors import InputError
from sea_export.export.formats import export_format
from sea_export.files.recipes import recipes
from sea_export.options import FORMATS, ExportOptions, FitOptions
from tests.helpers.messages import naming

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
MEASUREMENTS = (ROOT / "model_cards" / "README.md").read_text(encoding="utf-8")
PROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")

_CELL = re.compile(r"[+-]\d+\.\d+ \[[+-]\d+\.\d+, [+-]\d+\.\d+\]")


def section(title: str, text: str = README) -> str:
    return text.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def test_figures_are_those_of_the_page_that_explains_them() -> None:
    figures = _CELL.findall(section("Before and after"))
    assert len(figures) == 6
    assert [one for one in figures if one not in MEASUREMENTS] == []


def test_the_accuracy_on_bbq_is_that_of_the_page_that_explains_it() -> None:
    (told,) = re.findall(r"\[(from \d+ to \d+ %)\]\(model_cards/README.md#fairness\)", README)
    assert told in section("Fairness", MEASUREMENTS)


def test_the_install_line_names_every_extra() -> None:
    listed = PROJECT.partition("[project.optional-dependencies]")[2].partition("\n[")[0]
    extras = dict(re.findall(r"^([\w-]+) = \[(.*)\]$", listed, re.MULTILINE))
    named = re.findall(r"\[([\w-]+)\]", section("Install").partition("extras of")[2])
    assert named
    assert set(named) == extras.keys() - {"all"}
    assert re.search(r"\[(.*)\]", extras["all"])[1].split(",") == named


def test_the_oldest_python_is_the_one_that_is_told() -> None:
    assert f"Python {re.search(r'requires-python = .>=([0-9.]+)', PROJECT)[1]} or later" in README


def test_what_happens_without_options() -> None:
    assert DemonstrationOptions().demonstrations == "builtin:truthfulness"
    assert FitOptions().method == "spectral"
    assert ExportOptions().format == "merged"
    assert EffectOptions().strength is None, "the budget finds it"
    assert "at most 0.1 nats" in README.replace("\n", " ")
    assert EffectOptions().max_kl == 0.1


def test_the_table_of_formats_is_complete() -> None:
    table = section("What comes out").partition("| `--format` |")[2].partition("\n\n")[0]
    first_cells = [line.split(" | ")[0] for line in table.splitlines()[2:]]
    assert re.findall(r"`([\w-]+)`", " ".join(first_cells)) == sorted(FORMATS, key=" ".join(first_cells).index)


def test_the_line_of_a_file_is_a_demonstration(tmp_path: Path) -> None:
    line = re.search(r'`(\{"prompt": .*?\})`', README)[1]
    file = tmp_path / "rows.jsonl"
    file.write_text(f"{line}\n{line.replace('bird', 'fish')}\n", encoding="utf-8")
    first, _ = load_demonstrations(file)
    assert {name: getattr(first, name) for name in ("prompt", "positive", "negative")} == json.loads(line)


@pytest.mark.parametrize("format", sorted(FORMATS))
def test_edits_that_are_not_linear_need_custom_code(format: str) -> None:
    fit = FitOptions(feature_function="tanh")
    if format == "custom-code":
        export_format(format).check_options(fit, ExportOptions(format=format))
    else:
        with pytest.raises(InputError, match=naming("--format custom-code")):
            export_format(format).check_options(fit, ExportOptions(format=format))


def test_recipes_are_commented_options() -> None:
    assert all(line.startswith("#") for one in recipes().recipes for line in one.text.splitlines()[:1])
