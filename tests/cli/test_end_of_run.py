"""What a measured run says at its end: what is known, what the model answers, and commands that work as printed."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Sequence
from io import StringIO
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from rich.console import Console

from sea_export.cli import main, terminal
from sea_export.cli.layer_table import print_layers
from sea_export.demonstrations.demonstration import Demonstration
from sea_export.edit.summary import LayerSummary, broken_warning
from sea_export.effect.effect_options import EffectOptions
from sea_export.model.targets import Target
from sea_export.options import FitOptions
from tests.helpers.messages import assert_names

COPIES = 4


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def rows(demonstrations: Sequence[Demonstration], tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    fields = ("prompt", "positive", "negative")
    lines = [json.dumps({name: getattr(one, name) for name in fields}) for one in demonstrations]
    file.write_text("".join(line + "\n" for line in COPIES * lines), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def finished(tiny_checkpoint: Path, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A measured run: its output, and what it said."""
    output = tmp_path_factory.mktemp("finished") / "out"
    options = ("--strength", "1", "--layers", "last:2", "--explained-variance", "0.7", "--held-out", "0.25")
    result = run("fit-and-save", tiny_checkpoint, output, "--demonstrations", rows, *options)
    assert result.exit_code == 0, result.output
    return output, result.stdout


def printed_commands(said: str) -> list[list[str]]:
    return [
        shlex.split(line.partition(": ")[2])[1:]
        for line in said.splitlines()
        if ": " in line and " sea-export " in line
    ]


def test_what_is_known_comes_before_what_to_do(finished: tuple[Path, str]) -> None:
    output, said = finished
    order = (
        "Exported faithfully (verified)",
        "held-out demonstrations",
        "Damage: ",
        "  before: ",
        "  after: ",
        "Saved to",
    )
    places = [said.index(words) for words in (*order, "sea-export compare", "sea-export evaluate", "sea-export push")]
    assert places == sorted(places)
    assert_names(said, "convert_hf_to_gguf.py", "llama-quantize", "out-F16.gguf", "out-Q4_K_M.gguf")
    assert 2 <= said.count("  before: ") <= 3
    examples = json.loads((output / "sea_export.json").read_text(encoding="utf-8"))["edit"]["examples"]
    assert examples["prompts"] == 12
    assert all(f"> {one['prompt']}" in said for one in examples["shown"])
    card = (output / "README.md").read_text(encoding="utf-8")
    sections = ("What was changed", "Before and after", "What it gains", "How to load", "Intended use", "make it again")
    headings = [line for line in card.splitlines() if line.startswith("## ")]
    found = [next(place for place, line in enumerate(headings) if words in line) for words in sections]
    assert found == sorted(found)
    assert headings[-1] == "## Layers"


@pytest.mark.slow
def test_the_printed_commands_work(finished: tuple[Path, str]) -> None:
    _, said = finished
    for command in printed_commands(said):
        if command[0] != "push":
            result = run(*command)  # a chat reads prompts from standard input, which is empty
            assert result.exit_code == 0, result.output
    assert {command[0] for command in printed_commands(said)} == {"compare", "chat", "evaluate", "push"}


@pytest.mark.slow
def test_verify_says_it_in_a_word(finished: tuple[Path, str], tiny_checkpoint: Path, tmp_path: Path) -> None:
    output = shutil.copytree(finished[0], tmp_path / "out")
    result = run("verify", output, "--base", tiny_checkpoint)
    assert result.exit_code == 0, result.output
    assert "\nVerified: " in result.stdout
    (output / "generation_config.json").write_text("{}")
    result = run("verify", output, "--base", tiny_checkpoint)
    assert result.exit_code == 1
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("Failed: ")]
    assert_names(line, "generation_config.json")


@pytest.mark.slow
def test_answers_are_repeated_with_the_run(
    finished: tuple[Path, str], tiny_checkpoint: Path, rows: Path, tmp_path: Path
) -> None:
    sources = ("--base", tiny_checkpoint, "--demonstrations", rows)
    result = run("reproduce", finished[0], tmp_path / "again", *sources)
    assert result.exit_code == 0, result.output
    assert_names(result.stdout, "byte-identical")
    edits = [(output / "sea_edit" / "sea_edit.json").read_bytes() for output in (finished[0], tmp_path / "again")]
    assert b'"examples"' in edits[0]
    assert edits[0] == edits[1]


def summary(change: float = 0.1) -> LayerSummary:
    return LayerSummary(Target(127, "attention"), 4095, 4096, None, 4097, 0.9999, change, 0.1234, 0.123, "none")


def test_nothing_is_cut_off_at_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = StringIO()
    monkeypatch.setattr("sea_export.cli.layer_table.console", Console(file=screen, width=80))
    print_layers([summary()])
    said = screen.getvalue()
    for cell in (
        "127.attention",
        "4095 / 4096 of 4097",
        "99.99%",
        "10.00%",
        "0.1234",
        "0.123 ",
        "directions",
        "signature",
    ):
        assert cell in said, "in one piece"
    for column in ("directions: ", "first: ", "change: ", "signature: ", "constant: "):
        assert column in said, "the legend tells what it says"


def test_other_tables_cut_nothing_off_either() -> None:
    screen = StringIO()
    table = terminal.plain_table("a very long heading of a column", "another heading, as long as that", "x")
    table.add_row("a-name-without-a-space-" * 3, "b" * 70, "c" * 30)
    Console(file=screen, width=80).print(table)
    assert "…" not in screen.getvalue()
    assert screen.getvalue().count("b") == 70


@pytest.mark.parametrize(
    ("strength", "warned"), [(20.0, True), (-9.0, True), (1.0, False), (2.0, False), (None, False)]
)
def test_a_strength_out_of_reason_is_told_before_the_fit(
    strength: float | None, warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    EffectOptions(strength=strength).check(FitOptions())
    assert ("--strength" in caplog.text) == warned


def test_a_strength_of_a_gradient_method_has_another_scale(caplog: pytest.LogCaptureFixture) -> None:
    EffectOptions(strength=400.0).check(FitOptions(method="natural-gradient"))
    assert not caplog.text


def test_an_edit_that_drowns_what_it_edits_is_told() -> None:
    assert broken_warning([summary(0.5), summary(1.9)]) is None
    assert_names(str(broken_warning([summary(0.5), summary(6.5)])), "127.attention", "6.5", "--strength")
