"""Options of commands: they are made from option classes, and a command gets objects of these classes."""

from __future__ import annotations

from dataclasses import MISSING, dataclass, field
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from sea_export.cli.click_options import options, single_option
from sea_export.options import check_values, option, same_option


@dataclass(frozen=True)
class Inner:
    depth: int = option(3, "How deep.", minimum=1)

    def __post_init__(self) -> None:
        check_values(self)


@dataclass(frozen=True)
class Outer:
    name: str = option(MISSING, "What it is called.")
    colours: tuple[str, ...] = option((), "Which colours.", ("red", "blue"), name="colour", metavar="COLOUR")
    weight: float | None = option(None, "How heavy.")
    fast: bool = option(False, "Be fast.")
    safe: bool = option(True, "Be safe.")
    tidy: bool | None = option(None, "Be tidy, or not.")
    file: Path | None = option(None, "Where to write.", path="file")
    inner: Inner = field(default_factory=Inner)


@dataclass(frozen=True)
class Other:
    levels: int = same_option(Inner, "depth")
    kind: str = option("auto", "Which kind.", ("auto", "own"))


def run(*arguments: object) -> tuple[Result, list[object]]:
    """The result of a command that keeps what it is called with."""
    given: list[object] = []

    @click.command()
    @click.argument("model")
    @options(outer=Outer, other=Other)
    def command(model: str, outer: Outer, other: Other) -> None:
        given.extend([model, outer, other])

    return CliRunner().invoke(command, [str(argument) for argument in arguments]), given


def test_a_command_gets_objects() -> None:
    result, given = run("m", "--name", "x")
    assert result.exit_code == 0, result.output
    assert given == ["m", Outer(name="x"), Other()]


def test_every_kind_of_option_is_understood(tmp_path: Path) -> None:
    arguments = [
        "--name",
        "x",
        "--colour",
        "red",
        "--colour",
        "blue",
        "--weight",
        2.5,
        "--fast",
        "--no-safe",
        "--no-tidy",
    ]
    result, given = run("m", *arguments, "--file", tmp_path / "f", "--depth", 5, "--levels", 4, "--kind", "own")
    assert result.exit_code == 0, result.output
    outer = Outer("x", ("red", "blue"), 2.5, True, False, False, tmp_path / "f", Inner(5))
    assert given == ["m", outer, Other(4, "own")]


@pytest.mark.parametrize(
    ("arguments", "fact"),
    [
        ([], "--name"),
        (["--name", "x", "--colour", "green"], "--colour"),
        (["--name", "x", "--depth", "0"], "--depth"),
        (["--name", "x", "--levels", "0"], "--levels"),
        (["--name", "x", "--file", "."], "--file"),
    ],
)
def test_wrong_values_are_refused(arguments: list[str], fact: str) -> None:
    result, given = run("m", *arguments)
    assert result.exit_code == 2
    assert fact in result.output
    assert given == []


def test_help_shows_defaults_choices_and_ranges() -> None:
    text = " ".join(run("--help")[0].output.split())
    for words in (
        "--name TEXT What it is called. [required]",
        "--colour COLOUR Which colours.",
        "--fast Be fast. ",
        "--safe / --no-safe Be safe. [default: safe]",
        "--tidy / --no-tidy Be tidy, or not. ",
        "--file FILE Where to write.",
        "--depth INTEGER RANGE How deep. [default: 3; x>=1]",
        "--levels INTEGER RANGE How deep. [default: 3; x>=1]",
        "--kind [auto|own] Which kind. [default: auto]",
    ):
        assert words in text


def test_one_option_of_a_class() -> None:
    given: list[int] = []

    @click.command()
    @single_option(Inner, "depth")
    def command(depth: int) -> None:
        given.append(depth)

    assert CliRunner().invoke(command, ["--depth", "7"]).exit_code == 0
    assert given == [7]
