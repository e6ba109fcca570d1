"""A command gets its options from a file as from the command line, and writes itself as such a file."""

from __future__ import annotations

import json
from pathlib import Path

import click
import pytest
import yaml
from click.testing import CliRunner, Result

from sea_export.cli import main
from sea_export.demonstrations.demonstration import Demonstration
from tests.helpers.parameters import UNMEASURED

GROUPS = ("recipes", "patch")
COMMANDS = [name for name in main.list_commands(click.Context(main)) if name not in GROUPS]
ARGUMENTS = {
    "inspect": ["edit"], "verify": ["output"], "evaluate": ["model", "--benchmark", "damage"], "doctor": ["model"],
    "chat": ["edit"], "extract": ["first", "second", "edit"],
    "import": ["source", "edit", "--model", "model"],
}  # fmt: skip


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def printed(*arguments: object) -> dict[str, object]:
    result = run(*arguments, "--print-config")
    assert result.exit_code == 0, result.output
    values = yaml.safe_load(result.output)
    assert isinstance(values, dict)
    return values


def written(folder: Path, text: str | bytes) -> Path:
    file = folder / "options.yaml"
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    return file


@pytest.mark.parametrize("command", [*COMMANDS, "patch make", "patch apply"])
def test_every_command_prints_a_file_that_gives_the_same_command(command: str, tmp_path: Path) -> None:
    arguments = ["base", "file", "out"] if command == "patch apply" else ["first", "second"]
    text = run(*command.split(), *ARGUMENTS.get(command, arguments), "--print-config").output
    file = written(tmp_path, text)
    assert yaml.safe_load(text)["command"] == command
    assert run(*command.split(), "--config", file, "--print-config").output == text


def test_options_come_from_the_file_and_the_command_line_comes_first(tmp_path: Path) -> None:
    lines = (
        "command: fit-and-save", "layers: last:6,29", "limit: 30", "explained-variance: 9e-1", "skip-bad-rows: true",
        "layerwise: no", "max-kl: 0.03",
    )  # fmt: skip
    file = written(tmp_path, "# options\n" + "\n".join(lines))
    values = printed("fit-and-save", "model", "output", "--config", file, "--limit", 40)
    expected = {
        "command": "fit-and-save", "model": "model", "output": "output", "layers": "last:6,29", "limit": 40,
        "explained-variance": 0.9, "skip-bad-rows": True, "layerwise": False, "max-kl": 0.03,
    }  # fmt: skip
    assert {name: values[name] for name in expected} == expected


def test_an_option_that_may_be_repeated_takes_a_value_or_a_list(tmp_path: Path) -> None:
    one = written(tmp_path, "against: 'a b'\nbenchmark: damage\n")
    assert printed("evaluate", "model", "--config", one)["benchmark"] == ["damage"]
    several = written(tmp_path, "benchmark: [damage, 'truthfulqa=a file.csv']\n")
    assert printed("evaluate", "model", "--config", several)["benchmark"] == ["damage", "truthfulqa=a file.csv"]


@pytest.mark.parametrize("order", ["preset first", "file first", "in the file"])
def test_a_file_comes_before_a_preset(order: str, tmp_path: Path) -> None:
    preset = ("--preset", "published-truthfulness")
    text = "template: chat\n" + ("preset: published-truthfulness\n" if order == "in the file" else "")
    config = ("--config", written(tmp_path, text))
    given = {"preset first": (*preset, *config), "file first": (*config, *preset), "in the file": config}[order]
    values = printed("fit", "model", "edit", *given)
    assert (values["template"], values["normalization"]) == ("chat", "sequence")


REFUSED = {
    "unknown": ("limt: 3", "limt is no option of fit-and-save (did you mean limit?)"),
    "underscores": ("explained_variance: 0.9", "(did you mean explained-variance?)"),
    "nothing like it": ("zzz: 3", "sea-export fit-and-save --help names them."),
    "twice": ("limit: 3\nlimit: 4", "line 2: limit occurs twice"),
    "list": ("limit: [3, 4]", "limit has 2 values, and takes one"),
    "object": ("limit: {a: 3}", "line 1: limit is neither a value nor a list of values"),
    "list of lists": ("limit: [[3]]", "line 1: limit is neither a value nor a list of values"),
    "key that is a list": ("[limit]: 3", "does not begin with the name of an option"),
    "text": ("limit", "it is not a list of options"),
    "empty": ("", "it is not a list of options"),
    "not YAML": ("a: b: c", "it is not YAML"),
    "deep": ("[" * 5000, "it is not YAML"),
    "not UTF-8": (b"limit: \xff", "it is not UTF-8 text"),
    "too large": ("#" * 1_000_001, "it has more than 1,000,000 bytes"),
    "of another command": ("command: verify", "it is for sea-export verify, not for fit-and-save"),
    "reads itself": ("config: other.yaml", "config is no option of fit-and-save"),
}


@pytest.mark.parametrize(("text", "message"), REFUSED.values(), ids=REFUSED)
def test_other_files_are_refused(text: str | bytes, message: str, tmp_path: Path) -> None:
    result = run("fit-and-save", "model", "output", "--config", written(tmp_path, text))
    assert result.exit_code == 2, result.output
    assert message in result.stderr


def test_a_missing_file_is_told_with_what_there_is(tmp_path: Path) -> None:
    written(tmp_path, "limit: 3")
    result = run("fit-and-save", "model", "output", "--config", tmp_path / "option.yaml")
    assert result.exit_code == 2
    assert "there is no such file or directory (did you mean" in result.stderr
    assert "options.yaml?)" in result.stderr


def test_a_value_is_checked_as_on_the_command_line(tmp_path: Path) -> None:
    result = run("fit-and-save", "model", "output", "--config", written(tmp_path, "limit: few"))
    assert result.exit_code == 2
    assert "--limit" in result.stderr
    assert "few" in result.stderr


@pytest.fixture(scope="module")
def earlier(
    tiny_checkpoint: Path, demonstrations: tuple[Demonstration, ...], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """An output with a manifest, beside the demonstrations that it was fitted on."""
    folder = tmp_path_factory.mktemp("earlier")
    rows = [{"question": d.prompt, "right": d.positive, "wrong": d.negative} for d in demonstrations]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    columns = ("--prompt-field", "question", "--positive-field", "right", "--negative-field", "wrong")
    options = (*columns, *UNMEASURED, "--layers", "last:2", "--positive-rank", 2, "--format", "adapter", "--no-verify")
    result = run("fit-and-save", tiny_checkpoint, folder / "out", "--demonstrations", folder / "rows.jsonl", *options)
    assert result.exit_code == 0, result.output
    return folder / "out"


@pytest.mark.parametrize("given", ["", "sea_export.json"])
def test_a_manifest_gives_the_options_of_its_run(
    given: str, earlier: Path, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(earlier.parent)
    config = ("--config", earlier / given)
    values = printed("fit-and-save", "model", "output", *config)
    expected = {
        "demonstrations": "rows.jsonl", "prompt-field": "question", "positive-field": "right", "format": "adapter",
        "negative-field": "wrong", "strength": 1.0, "measure": False, "layers": "last:2", "positive-rank": 2,
        "verify": False, "trust-remote-code": False,
    }  # fmt: skip
    assert {name: values[name] for name in expected} == expected
    assert run("fit-and-save", tiny_checkpoint, tmp_path / "out", *config).exit_code == 0
    for file in ("adapter_model.safetensors", "sea_edit/sea_edit.safetensors"):
        assert (tmp_path / "out" / file).read_bytes() == (earlier / file).read_bytes()


def test_the_command_line_comes_before_a_manifest(earlier: Path) -> None:
    values = printed("fit-and-save", "model", "output", "--config", earlier, "--format", "merged", "--layers", "all")
    assert (values["format"], values["layers"], values["positive-rank"]) == ("merged", "all", 2)


@pytest.mark.parametrize("problem", ["no manifest", "not of the command", "in memory", "two fits", "effect"])
def test_manifests_without_a_run_are_refused(problem: str, earlier: Path, tmp_path: Path) -> None:
    manifest = json.loads((earlier / "sea_export.json").read_text(encoding="utf-8"))
    if problem == "in memory":
        manifest["edit"]["demonstrations"]["origin"] = None
    if problem == "effect":
        manifest["edit"]["effect"] = {"max_kl": [0.1], "searched": True}
    if problem == "two fits":
        manifest["edit"] = {"composed": [manifest["edit"], manifest["edit"]]}
    file = tmp_path / "sea_export.json"
    file.write_text("{}" if problem == "no manifest" else json.dumps(manifest), encoding="utf-8")
    command = ("push", "output", "a/b") if problem == "not of the command" else ("fit", "model", "edit")
    result = run(*command, "--config", file)
    expected = {
        "no manifest": "it is not a manifest", "not of the command": "none of its options is one of push",
        "in memory": "a list in memory", "two fits": "it tells of 2 fits",
        "effect": "how the strength of the edit was found",
    }  # fmt: skip
    assert result.exit_code == 2, result.output
    assert expected[problem] in result.stderr
