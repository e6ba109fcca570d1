"""Nothing outside of OUTPUT is replaced: every option that names a file to be written, on every kind of file."""

from __future__ import annotations

import json
import os
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from sea_export.cli import main
from tests.helpers.messages import assert_names

READ_OR_LOOKED_AT = {"evaluate --edit", "doctor --output"}
DIRECTORIES = {"fit --cache", "fit-and-save --cache"}
WRITTEN = {
    "compare --html": "page.html",
    "evaluate --judge-cache": "verdicts.jsonl",
    "evaluate --plot": "picture.png",
    "inspect --plot": "picture.svg",
    "inspect --plot-activations": "picture.pdf",
    "tune --plot": "picture.png",
    "tune --storage": "study.log",
}
ARGUMENTS = {
    "compare": ["MODEL", "MODEL", "--prompt", "Is it?"],
    "evaluate": ["MODEL", "--benchmark", "truthfulqa-generation=ROWS", "--judge", "MODEL"],
    "inspect": ["EDIT", "--model", "MODEL", "--demonstrations", "ROWS"],
    "tune": ["MODEL", "OUTPUT", "--benchmark", "multiple-choice=ROWS"],
    "check": ["ROWS"],
    "diff": ["MODEL", "MODEL"],
    "doctor": ["MODEL"],
    "extract": ["MODEL", "MODEL", "EDIT"],
    "fit": ["MODEL", "OUTPUT"],
    "fit-and-save": ["MODEL", "OUTPUT"],
    "import": ["ROWS", "EDIT", "--model", "MODEL", "--as", "add", "--layers", "0"],
    "push": ["OUTPUT", "name"],
    "recipes": [],
    "reproduce": ["MODEL", "OUTPUT"],
    "save": ["EDIT", "OUTPUT", "--base", "MODEL"],
    "verify": ["OUTPUT"],
}
WRITTEN |= {f"{command} --json": "result.json" for command in ARGUMENTS}


def test_no_option_that_names_a_path_is_forgotten() -> None:
    context = click.Context(main)
    found = set()
    for name in main.list_commands(context):
        command = main.get_command(context, name)
        assert command is not None
        for parameter in command.params:
            if isinstance(parameter, click.Option) and isinstance(parameter.type, click.Path):
                if parameter.name == "config":
                    continue  # every command reads it
                found.add(f"{name} {parameter.opts[0]}")
    assert found == READ_OR_LOOKED_AT | DIRECTORIES | WRITTEN.keys()


@pytest.mark.parametrize("kind", ["link", "broken link", "named pipe", "folder", "no folder"])
@pytest.mark.parametrize("option", sorted(WRITTEN))
def test_what_must_not_be_replaced_is_refused_before_anything_is_read(option: str, kind: str, tmp_path: Path) -> None:
    """Neither the model nor the rows exist, so a check after anything else would say so."""
    command, name = option.split()
    file, precious = tmp_path / WRITTEN[option], tmp_path / "precious"
    precious.write_text("years of work")
    if kind == "named pipe":
        os.mkfifo(file)
    elif kind == "folder":
        file.mkdir()
    elif kind == "no folder":
        file = tmp_path / "absent" / file.name
    else:
        file.symlink_to(precious if kind == "link" else tmp_path / "nothing")
    before = sorted(str(path) for path in tmp_path.rglob("*"))
    values = {"MODEL": "model", "EDIT": "edit", "ROWS": "rows.jsonl", "OUTPUT": "out"}
    arguments = [word.replace(key, str(tmp_path / values[key])) for word in ARGUMENTS[command] for key in [_key(word)]]
    result = CliRunner().invoke(main, [command, *arguments, name, str(file)])
    assert result.exit_code == 2, result.output
    assert_names(result.output.replace("\n", ""), file.name)
    assert sorted(str(path) for path in tmp_path.rglob("*")) == before
    assert precious.read_text() == "years of work"


def _key(word: str) -> str:
    return next((key for key in ("MODEL", "EDIT", "ROWS", "OUTPUT") if key in word), "MODEL")


@pytest.mark.parametrize("option", ["--json", "--plot"])
def test_results_are_written_where_the_option_says(option: str, tiny_checkpoint: Path, tmp_path: Path) -> None:
    rows, file = tmp_path / "rows.jsonl", tmp_path / "figures.svg"
    row = {"question": "Is it?", "choices": ["Yes.", "No."], "label": 0}
    rows.write_text(f"{json.dumps(row)}\n" * 3)
    arguments = ["evaluate", str(tiny_checkpoint), "--benchmark", f"multiple-choice={rows}", option]
    for _ in range(2):  # the second run replaces the first one's
        result = CliRunner().invoke(main, [*arguments, str(file)])
        assert result.exit_code == 0, result.output
        assert file.stat().st_size > 100
    assert {path.name for path in tmp_path.iterdir()} == {"rows.jsonl", "figures.svg"}
    refused = CliRunner().invoke(main, [*arguments[:-1], "--json", str(rows)])
    assert refused.exit_code == 2
    assert "rows.jsonl" in refused.output
