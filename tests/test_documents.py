"""The documents say what is true: their links, commands, scripts and snippets are tried."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import torch
import yaml
from click.testing import CliRunner

from sea_export.cli import main
from tests.helpers.benchmark_files import write_jsonl, write_truthfulqa
from tests.helpers.gguf_files import write_control_vector, write_gguf
from tests.helpers.hub_client import connected_hub

ROOT = Path(__file__).resolve().parents[1]
# What stands beside these folders may be installed packages, exports, or notes of tools.
FOLDERS = (".", ".github", "model_cards", "scripts", "tests")
DOCUMENTS = sorted(
    file
    for folder in FOLDERS
    for file in (ROOT / folder).glob("*.md" if folder == "." else "**/*.md")
    if not file.is_symlink()
)
README = ROOT / "README.md"
MEASURED = [README, *(ROOT / folder / "README.md" for folder in ("model_cards", "scripts", "tests"))]

_LINK = re.compile(r"\[[^\]]*\]\(([^()\s]+)\)")
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_CODE = re.compile(r"`[^`\n]+`")
_HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)
_SCRIPT = re.compile(r"\bscripts/\w+")
_PATH = re.compile(r"(?<![\w./])(?:\.ci|\.github|model_cards|scripts|sea_export|tests)/[\w./]*\w")
_TABLE = re.compile(r"^\|.*\|\n\|-.*\|\n(?:\|.*\|\n)+", re.MULTILINE)
_NUMBER_CELL = re.compile(r"\| *[+-]?\d")
_ABSOLUTE_PATH = re.compile(r"(?<![\w./:<~-])/\w+/\w")


def name_of(document: Path) -> str:
    return document.relative_to(ROOT).as_posix()


def read(document: Path) -> str:
    return document.read_text(encoding="utf-8")


def prose(text: str) -> str:
    """The text without its code."""
    return _CODE.sub("", _FENCE.sub("", text))


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives to the headings."""
    counts: Counter[str] = Counter()
    found = set()
    for heading in _HEADING.findall(_FENCE.sub("", text)):
        words = re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")
        found.add(f"{words}-{counts[words]}" if counts[words] else words)
        counts[words] += 1
    return found


def commands(text: str) -> list[list[str]]:
    """The arguments of each `sea-export` in the shell code, also where `python -m` or a launcher starts it."""
    lines = "".join(code for language, code in _FENCE.findall(text) if language == "bash").replace("\\\n", " ")
    found = []
    for line in lines.splitlines():
        words = shlex.split(line, comments=True)
        for name in ("sea-export", "sea_export"):
            if name in words:
                found.append(words[words.index(name) + 1 :])
    return found


def parse(arguments: list[str]) -> None:
    """Raises a UsageError for an unknown command, option or choice, and for too many or too few arguments."""
    with click.Context(main, info_name="sea-export") as group:
        name, command, rest = main.resolve_command(group, list(arguments))
        with click.Context(command, info_name=name, parent=group) as context:
            values, surplus, _ = command.make_parser(context).parse_args(rest)
            if surplus:
                raise click.UsageError(f"{name} takes no {surplus}")
            for parameter in command.get_params(context):
                missing = parameter.name not in values or parameter.value_is_missing(values[parameter.name])
                if missing and parameter.required:
                    raise click.UsageError(f"{name} needs {parameter.name}")
                if not missing and not isinstance(parameter.type, click.Path | click.File):
                    parameter.type_cast_value(context, values[parameter.name])


def tables_of_figures(text: str) -> Iterator[tuple[str, str]]:
    """The first line of each table that has numbers, and its section as far as the table."""
    for table in _TABLE.finditer(text):
        if _NUMBER_CELL.search(table[0]):
            yield table[0].partition("\n")[0], text[: table.start()].rpartition("\n#")[2]


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_links_resolve(document: Path) -> None:
    for target in _LINK.findall(prose(read(document))):
        if re.match(r"\w+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (document.parent / path).resolve() if path else document
        assert file.exists(), target
        assert file.is_relative_to(ROOT), target
        assert not anchor or anchor in anchors(read(file)), target


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_files_of_the_project_exist(document: Path) -> None:
    for path in _PATH.findall(read(document)):
        assert (ROOT / path).exists(), path


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_no_path_of_one_machine(document: Path) -> None:
    assert not _ABSOLUTE_PATH.findall(read(document))


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_commands_are_those_of_the_program(document: Path) -> None:
    for arguments in commands(read(document)):
        parse(arguments)


def test_readme_takes_five_minutes() -> None:
    assert len(read(README).splitlines()) <= 150
    assert len(read(README).split()) <= 1600


def test_readme_names_real_options() -> None:
    """Outside of the shell code too."""
    with click.Context(main) as group:
        options = {
            option
            for name in main.list_commands(group)
            for parameter in (main.get_command(group, name) or main).params
            for option in (*parameter.opts, *parameter.secondary_opts)
        }
    named = {option for code in _CODE.findall(_FENCE.sub("", read(README))) for option in re.findall(r"--[\w-]+", code)}
    assert named
    assert named <= options


@pytest.mark.slow
def test_readme_runs_as_it_stands(
    tiny_checkpoint: Path, quantized_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its commands and Python code one after the other, with a Hub of the tests and small files under its names."""
    monkeypatch.chdir(tmp_path)
    letters = {ord("0"): "a", ord("1"): "b"}  # the words of the GGUF file's tokenizer
    words = [f"{number:05b}".translate(letters) for number in range(16)]
    rows = [{"prompt": word, "positive": f"ab{word}", "negative": f"{word}bb"} for word in words]
    write_jsonl(Path("pairs.jsonl"), rows)
    lines = ["question,right,wrong", *(",".join(row.values()) for row in rows)]
    Path("table.csv").write_text("\n".join(lines), encoding="utf-8")
    write_truthfulqa(Path("TruthfulQA.csv"))
    write_gguf(Path("model.gguf"))
    size = json.loads((tiny_checkpoint / "config.json").read_text(encoding="utf-8"))["hidden_size"]
    write_control_vector(Path("vectors.gguf"), {1: torch.ones(size), 2: -torch.ones(size)})
    ran = 0
    with connected_hub(tmp_path / "home") as hub:
        hub.add_model("org/model", tiny_checkpoint)
        hub.add_model("org/quantized", quantized_checkpoint)
        for language, code in _FENCE.findall(read(README)):
            if language == "python":
                exec(code, {})
            for arguments in commands(f"```bash\n{code}```") if language == "bash" else ():
                result = CliRunner().invoke(main, arguments)
                assert result.exit_code == 0, f"{shlex.join(arguments)}\n{result.output}"
                ran += 1
    assert ran > 10
    assert {"README.md", "sea_export.json", "sea_edit"} <= {file.name for file in Path("out").iterdir()}


def test_the_map_is_what_import_linter_checks() -> None:
    layers = re.search(r"^layers = \[\n(.*?)^\]", read(ROOT / "pyproject.toml"), re.MULTILINE | re.DOTALL)
    assert layers is not None
    table = read(ROOT / ".github" / "CONTRIBUTING.md").partition("## The map")[2].partition("\n## ")[0]
    names = re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)
    assert re.findall(r"`(\w+)[/.\w]*`", " ".join(names)) == re.findall(r"\w+", layers[1])


@pytest.mark.parametrize("document", MEASURED, ids=name_of)
def test_figures_name_the_script_that_prints_them(document: Path) -> None:
    found = list(tables_of_figures(read(document)))
    assert found
    for heading, section in found:
        assert _SCRIPT.search(section), heading


def test_every_script_is_described() -> None:
    described = set(_SCRIPT.findall(read(ROOT / "scripts" / "README.md")))
    scripts = {f"scripts/{file.name}" for file in (ROOT / "scripts").iterdir() if os.access(file, os.X_OK)}
    assert {script for script in scripts if (ROOT / script).is_file()} <= described


def test_the_command_reference_is_current() -> None:
    command = [sys.executable, str(ROOT / "scripts" / "command_reference"), "--check"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


def project_version() -> str:
    return re.search(r'^version = "(.+)"$', read(ROOT / "pyproject.toml"), re.MULTILINE)[1]


def test_the_changelog_keeps_its_form() -> None:
    text = read(ROOT / "CHANGELOG.md")
    releases = re.findall(r"^## (.*)$", text, re.MULTILINE)
    assert releases[0] == "[Unreleased]"
    assert releases[1].startswith(f"[{project_version()}] - ")
    assert all(re.fullmatch(r"\[\d+\.\d+\.\d+\] - \d{4}-\d\d-\d\d", release) for release in releases[1:])
    kinds = set(re.findall(r"^### (.*)$", text, re.MULTILINE))
    assert kinds <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def test_the_citation_can_be_read() -> None:
    citation = yaml.safe_load(read(ROOT / "CITATION.cff"))
    assert citation["cff-version"] == "1.2.0"
    assert citation["version"] == project_version()
    assert {"message", "title", "authors", "license"} <= citation.keys()
    (paper,) = citation["references"]
    assert paper["title"] == "Spectral Editing of Activations for Large Language Model Alignment"


@pytest.mark.parametrize("file", sorted((ROOT / ".github").rglob("*.yml")), ids=name_of)
def test_files_for_github_can_be_read(file: Path) -> None:
    assert isinstance(yaml.safe_load(read(file)), dict)
