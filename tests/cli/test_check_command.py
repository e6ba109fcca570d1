"""`sea-export check` from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from sea_export.cli import main
from tests.helpers.parameters import UNMEASURED

ROWS = [
    {
        "prompt": f"Is {number} a number?",
        "positive": "Yes." if number % 2 else "It is.",
        "negative": f"No, {number} is not a number.",
    }
    for number in range(30)
]


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["check", *map(str, arguments)])


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, [*ROWS, ROWS[4]])), encoding="utf-8")
    return path


def test_findings_are_printed_with_what_to_do(file: Path) -> None:
    result = run(file)
    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    assert lines[0] == "31 demonstrations; 3 things to look at."
    assert [line.split(":")[0] for line in lines[1:]] == ["duplicates", "lengths", "first words"]
    assert "rows.jsonl, row 31" in lines[1]


def test_they_are_also_json(file: Path) -> None:
    record = json.loads(run(file, "--json", "-").stdout)
    assert record["demonstrations"] == 31
    assert record["findings"][0]["rows"] == ["rows.jsonl, row 31"]


def test_a_clean_set_has_none() -> None:
    result = run("builtin:fairness")
    assert (result.exit_code, result.output) == (0, "449 demonstrations; nothing found.\n")


def test_rows_of_a_benchmark_are_found(file: Path, tmp_path: Path) -> None:
    benchmark = tmp_path / "bench.jsonl"
    prompts = ("Is 7, a number?", "Who is that?")
    rows = [{"prompt": prompt, "positive": "a", "negative": "b"} for prompt in prompts]
    benchmark.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    result = run(file, "--against", f"demonstrations={benchmark}", "--likeness", 0.99)
    assert "leakage: the prompts of 1 demonstration" in result.stdout
    assert "rows.jsonl, row 8" in result.output


def test_a_model_shows_rows_that_were_swapped(tiny_checkpoint: Path, tmp_path: Path) -> None:
    sides = ("Yes, it is.", "No, it is not.")
    rows = [{"prompt": f"Is {number} a number?", "positive": sides[0], "negative": sides[1]} for number in range(30)]
    rows[12] = rows[12] | {"positive": sides[1], "negative": sides[0]}
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    result = run(file, tiny_checkpoint, "--template", "none", "--layer", 1, "--json", "-")
    assert result.exit_code == 1, result.output
    labels = [one for one in json.loads(result.stdout)["findings"] if one["name"] == "labels"]
    assert [one["rows"] for one in labels] == [["rows.jsonl, row 13"]]


def test_a_layer_that_the_model_has_not_is_refused(tiny_checkpoint: Path, file: Path) -> None:
    result = run(file, tiny_checkpoint, "--layer", 99)
    assert result.exit_code == 2
    assert "has no layer 99" in result.stderr


def test_a_fit_says_what_its_demonstrations_teach_besides(tiny_checkpoint: Path, file: Path, tmp_path: Path) -> None:
    options = ("--demonstrations", file, "--layers", "last:1", *UNMEASURED)
    command = ["fit", str(tiny_checkpoint), str(tmp_path / "edit"), *map(str, options)]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.output
    assert "first words: how a completion begins tells which one it is in 100% of the demonstrations" in result.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--against", "quiz=a.csv"), "'quiz=a.csv' is not NAME=FILE"),
        (("--against", "bbq"), "'bbq' is not NAME=FILE"),
        (("--against", "bbq=missing.jsonl"), "missing.jsonl"),
        (("--likeness", 2), "2.0 is no likeness"),
    ],
)
def test_wrong_options_are_refused(options: tuple[object, ...], message: str, file: Path) -> None:
    result = run(file, *options)
    assert result.exit_code == 2, result.output
    assert message in result.stderr


def test_a_missing_model_is_refused_before_the_demonstrations_are_read(tmp_path: Path) -> None:
    result = run(tmp_path / "missing.jsonl", tmp_path / "missing")
    assert result.exit_code == 2
    assert "missing" in result.stderr
