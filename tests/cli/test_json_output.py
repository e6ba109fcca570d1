"""`--json`: every command that has a result gives it in the form of its schema, and errors too."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import torch
from click.testing import CliRunner, Result
from jsonschema import Draft202012Validator, ValidationError

import sea_export
from sea_export.cli import main
from sea_export.demonstrations.demonstration import Demonstration
from sea_export.edit.spectral_edit import SpectralEdit
from sea_export.files.schemas import read_schema, schema_names
from tests.helpers.adapter_files import write_adapter
from tests.helpers.benchmark_files import choice_rows, write_jsonl
from tests.helpers.gguf_files import write_gguf
from tests.helpers.hub_client import connected_hub
from tests.helpers.messages import assert_names
from tests.helpers.parameters import UNMEASURED, slow_but
from tests.helpers.schemas import closed, validated
from tests.helpers.tiny_edits import weight_edit

MEASURED = ("--strength", "1", "--layers", "last:2", "--explained-variance", "0.7", "--held-out", "0.25")
BRIEF = (*UNMEASURED, "--layers", "last:2", "--explained-variance", "0.7")

WORK = {
    "fit": ["fit", "BASE", "OUT", "--demonstrations", "ROWS", *MEASURED],
    "fit-and-save": ["fit-and-save", "BASE", "OUT", "--demonstrations", "ROWS", *MEASURED],
    "save": ["save", "EDIT", "OUT", "--base", "BASE"],
    "save, unverified": ["save", "EDIT", "OUT", "--base", "BASE", "--no-verify"],
    "verify": ["verify", "DONE", "--base", "BASE"],
    "verify, changed": ["verify", "CHANGED", "--base", "BASE"],
    "inspect": ["inspect", "EDIT"],
    "inspect, of an output": ["inspect", "DONE"],
    "diff": ["diff", "BASE", "DONE"],
    "diff, alike": ["diff", "DONE", "DONE"],
    "diff, gguf": ["diff", "ONE.gguf", "OTHER.gguf"],
    "evaluate": [
        "evaluate",
        "EDIT",
        "--base",
        "BASE",
        "--benchmark",
        "damage",
        "--benchmark",
        "multiple-choice=CHOICES",
    ],
    "evaluate, alone": ["evaluate", "BASE", "--benchmark", "prompts", "--new-tokens", "4"],
    "tune": ["tune", "BASE", "OUT", "--demonstrations", "MANY", "--trials", "3", "--no-verify", "--max-kl", "0.5"],
    "compare": ["compare", "BASE", "EDIT", "--prompt", "Who knows?", "--new-tokens", "4"],
    "reproduce": ["reproduce", "DONE", "OUT", "--base", "BASE", "--demonstrations", "ROWS"],
    "import": ["import", "VECTORS", "OUT", "--model", "BASE", "--as", "add", "--layers", "3"],
    "import, of an adapter": ["import", "ADAPTER", "OUT", "--model", "BASE"],
    "inspect, of weights": ["inspect", "WEIGHTS"],
    "save, of weights": ["save", "WEIGHTS", "OUT", "--base", "BASE", "--no-verify"],
    "extract": ["extract", "BASE", "DONE", "OUT"],
    "extract, where there is no edit": ["extract", "BASE", "UNLIKE", "OUT"],
    "patch make": ["patch", "make", "DONE", "OUT.safetensors", "--base", "BASE"],
    "patch apply": ["patch", "apply", "BASE", "PATCH", "OUT"],
    "check": ["check", "MANY"],
    "check, with a model": ["check", "ROWS", "BASE", "--template", "none", "--layer", "1"],
    "doctor": ["doctor"],
    "doctor, of a model": ["doctor", "BASE", "--demonstrations", "ROWS"],
    "recipes": ["recipes"],
    "recipes, one": ["recipes", "show", "tune"],
}
"""What is tried -> the command. The words in capitals are files, see `places`."""
FOUND_SOMETHING = {"extract, where there is no edit", "verify, changed", "check", "check, with a model"}
QUICK = {
    "inspect",
    "diff",
    "diff, gguf",
    "diff, alike",
    "check",
    "recipes",
    "recipes, one",
    "save",
    "compare",
    "doctor",
}


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def places(
    tiny_checkpoint: Path,
    demonstrations: tuple[Demonstration, ...],
    fit_tiny: Callable[..., SpectralEdit],
    llama: Any,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, str]:
    """What the commands read. Read only."""
    folder = tmp_path_factory.mktemp("places")
    rows = [{"prompt": one.prompt, "positive": one.positive, "negative": one.negative} for one in demonstrations]
    fit_tiny(llama).save(folder / "edit")
    write_jsonl(folder / "rows.jsonl", 4 * rows)
    write_jsonl(folder / "choices.jsonl", choice_rows())
    many = [{**row, "prompt": f"{number}: {row['prompt']}"} for number in range(8) for row in rows]
    write_jsonl(folder / "many.jsonl", many)
    write_gguf(folder / "one.gguf")
    write_gguf(folder / "other.gguf", types={"ffn_down": "F16"}, feed_forward=64)
    done = folder / "done"
    result = run("fit-and-save", tiny_checkpoint, done, "--demonstrations", folder / "rows.jsonl", *BRIEF)
    assert result.exit_code == 0, result.output
    changed = folder / "changed"
    result = run("save", folder / "edit", changed, "--base", tiny_checkpoint, "--no-verify")
    assert result.exit_code == 0, result.output
    (changed / "config.json").write_text("{}", encoding="utf-8")
    files = {"EDIT": "edit", "ROWS": "rows.jsonl", "CHOICES": "choices.jsonl", "MANY": "many.jsonl", "DONE": "done"}
    files |= {"CHANGED": "changed", "ONE.gguf": "one.gguf", "OTHER.gguf": "other.gguf"}
    (folder / "vectors.json").write_text(json.dumps([1.0] * llama.config.hidden_size), encoding="utf-8")
    result = run("patch", "make", done, folder / "patch.safetensors", "--base", tiny_checkpoint)
    assert result.exit_code == 0, result.output
    unlike = copy.deepcopy(llama)
    torch.nn.init.normal_(unlike.model.layers[2].mlp.up_proj.weight)
    unlike.save_pretrained(folder / "unlike")
    write_adapter(folder / "adapter")
    weight_edit().save(folder / "weights")
    files |= {
        "ADAPTER": "adapter",
        "WEIGHTS": "weights",
        "VECTORS": "vectors.json",
        "PATCH": "patch.safetensors",
        "UNLIKE": "unlike",
    }
    return {"BASE": str(tiny_checkpoint), **{word: str(folder / file) for word, file in files.items()}}


def placed(words: list[str], places: dict[str, str], output: Path) -> list[str]:
    known = {**places, "OUT": str(output), "OUT.safetensors": f"{output}.safetensors"}
    return [known.get(word) or word.replace("CHOICES", known["CHOICES"]) for word in words]


def schema_of(words: list[str]) -> str:
    return "-".join(words[:2]) if words[0] == "patch" else words[0]


@pytest.mark.parametrize("case", slow_but(QUICK, WORK))
def test_results_are_in_the_form_of_their_schema(case: str, places: dict[str, str], tmp_path: Path) -> None:
    file, words = tmp_path / "result.json", WORK[case]
    result = run(*placed(words, places, tmp_path / "out"), "--json", file)
    assert result.exit_code == (case in FOUND_SOMETHING), result.output
    validated(file, schema_of(words))
    assert str(file) in result.stdout.replace("\n", "")


def test_a_push_too(places: dict[str, str], tmp_path: Path) -> None:
    with connected_hub(tmp_path / "home"):
        result = run("push", places["DONE"], "edited", "--json", "-")
    assert result.exit_code == 0, result.output
    found = validated(result.stdout, "push")
    assert (found["repo_id"], found["private"], found["changed"]) == ("me/edited", True, True)


@pytest.mark.slow
def test_a_run_that_pushes_says_where(places: dict[str, str], tmp_path: Path) -> None:
    words = ("fit-and-save", places["BASE"], tmp_path / "out", "--demonstrations", places["ROWS"], *BRIEF)
    with connected_hub(tmp_path / "home"):
        result = run(*words, "--push", "edited", "--json", "-")
    assert result.exit_code == 0, result.output
    assert validated(result.stdout, "fit-and-save")["pushed"]["repo_id"] == "me/edited"


def test_standard_output_is_only_json(places: dict[str, str]) -> None:
    plain, alone = (
        run("diff", places["BASE"], places["DONE"]),
        run("diff", places["BASE"], places["DONE"], "--json", "-"),
    )
    assert validated(alone.stdout, "diff")["tensors_changed"]
    assert alone.stderr == plain.stdout
    assert "tensors differ" in plain.stdout
    assert run("diff", places["BASE"], places["DONE"]).stdout == plain.stdout, "the next command prints as before"


def test_a_result_says_what_the_command_prints(places: dict[str, str]) -> None:
    found = validated(run("inspect", places["EDIT"], "--json", "-").stdout, "inspect")
    targets = SpectralEdit.load(places["EDIT"]).targets
    assert [(one["layer"], one["component"]) for one in found["layers"]] == list(targets)
    assert found["layers"] == sea_export.inspect(places["EDIT"]).to_dict()["layers"]
    assert found["provenance"]["options"]["layers"] == "last:3"


# Errors


@pytest.mark.parametrize(
    ("words", "status", "facts"),
    [
        (("inspect", "nowhere"), 2, ("nowhere",)),
        (("inspect",), 2, ("EDIT",)),
        (("evaluate", "nowhere"), 2, ("--benchmark",)),
        (("fit", "BASE", "out", "--method", "no"), 2, ("--method",)),
    ],
    ids=str,
)
def test_errors_are_json_too(words: tuple[str, ...], status: int, facts: tuple[str, ...], tmp_path: Path) -> None:
    result = run(*words, "--json", "-")
    error = validated(result.stdout, "error")["error"]
    assert result.exit_code == error["exit_status"] == status
    assert_names(error["message"], *facts)
    assert_names(result.stderr, *facts)
    file = tmp_path / "result.json"
    file.write_text("an older result", encoding="utf-8")
    assert run(*words, "--json", file).exit_code == status
    assert validated(file, "error")["error"] == error


def test_a_failure_is_json_with_status_1(monkeypatch: pytest.MonkeyPatch, places: dict[str, str]) -> None:
    def fail(*arguments: object) -> None:
        raise RuntimeError("a thing broke")

    monkeypatch.setattr("sea_export.model.diff_models.compare_checkpoints", fail)
    result = run("diff", places["BASE"], places["DONE"], "--json", "-")
    error = validated(result.stdout, "error")["error"]
    assert result.exit_code == error["exit_status"] == 1
    assert "a thing broke" in error["message"]


@pytest.mark.parametrize("kind", ["input", "inside", "argument", "no folder", "folder"])
def test_a_file_that_is_something_else_is_refused_and_kept(kind: str, places: dict[str, str], tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_bytes(Path(places["MANY"]).read_bytes())
    (tmp_path / "edit").mkdir()
    for file in Path(places["EDIT"]).iterdir():
        (tmp_path / "edit" / file.name).write_bytes(file.read_bytes())
    words: dict[str, tuple[object, ...]] = {
        "input": ("check", rows, "--json", rows),
        "inside": ("inspect", tmp_path / "edit", "--json", tmp_path / "edit" / "result.json"),
        "argument": ("inspect", tmp_path / "edit", "--plot", tmp_path / "a.svg", "--json", tmp_path / "a.svg"),
        "no folder": ("inspect", tmp_path / "edit", "--json", tmp_path / "no" / "result.json"),
        "folder": ("inspect", tmp_path / "edit", "--json", tmp_path),
    }
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    result = run(*words[kind])
    assert result.exit_code == 2, result.output
    assert_names(result.stderr.replace("\n", ""), Path(str(words[kind][-1])).name)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


# The schemas


def commands() -> Iterator[tuple[str, click.Command]]:
    with click.Context(main) as context:
        for name in main.list_commands(context):
            command = main.get_command(context, name)
            assert command is not None
            yield name, command
            if name == "patch":
                assert isinstance(command, click.Group)
                yield from ((f"patch-{part}", one) for part, one in command.commands.items())


def test_every_command_with_the_option_has_a_schema_and_is_tried() -> None:
    having = {name for name, command in commands() if any("--json" in one.opts for one in command.params)}
    assert having == {schema_of(words) for words in WORK.values()} | {"push"}
    assert having == set(schema_names()) - {"error", "progress"}


@pytest.mark.parametrize("name", schema_names())
def test_schemas_describe_everything_in_plain_words(name: str) -> None:
    schema = read_schema(name)
    Draft202012Validator.check_schema(schema)
    assert schema["title"]
    assert schema["properties"]["schema"]["const"] == name

    def check(part: Any, place: str) -> None:
        if isinstance(part, dict):
            for entry, described in part.get("properties", {}).items():
                told = isinstance(described, dict) and ("description" in described or "$ref" in described)
                assert told or "const" in described, f"{place}.{entry}"
            for key, value in part.items():
                check(value, f"{place}.{key}")

    check(schema, name)


def test_parts_that_schemas_share_are_the_same() -> None:
    known: dict[str, Any] = {}
    for name in schema_names():
        for part, described in read_schema(name).get("$defs", {}).items():
            assert known.setdefault(part, described) == described, (name, part)
    assert known


def test_a_schema_can_be_missed() -> None:
    schema = Draft202012Validator(closed(read_schema("error")))
    right = {"schema": "error", "schema_version": 1, "error": {"message": "m", "exit_status": 2}}
    schema.validate(right)
    for wrong in (
        {**right, "schema": "diff"},
        {**right, "error": {"message": "m"}},
        {**right, "error": {"message": 1, "exit_status": 2}},
        {**right, "error": {**right["error"], "more": 1}},
    ):
        with pytest.raises(ValidationError):
            schema.validate(wrong)


def test_the_schemas_are_in_the_package() -> None:
    assert {"diff", "error", "progress"} <= set(schema_names())
    assert json.loads((Path(sea_export.__file__).parent / "data" / "schemas" / "diff.json").read_text(encoding="utf-8"))
