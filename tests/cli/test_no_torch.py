"""What needs no arithmetic does not wait for torch, whose import takes longer than all of it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

import sea_export
from sea_export.edit.spectral_edit import SpectralEdit
from tests.helpers.tiny_edits import MLP_TARGETS, spectral_edit

RUNNER = """
import json, sys
from click.testing import CliRunner
from sea_export.cli import main
results = []
for arguments in json.load(sys.stdin):
    result = CliRunner().invoke(main, arguments)
    results.append([result.exit_code, result.output, sorted({"torch", "transformers"} & sys.modules.keys())])
json.dump(results, sys.stdout)
"""


def outcomes(commands: Sequence[Sequence[object]]) -> list[tuple[int, str, list[str]]]:
    """Runs commands one after another in one new process: status, output, and which slow modules were imported."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", RUNNER],
        input=json.dumps([[str(argument) for argument in command] for command in commands]),
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(sea_export.__file__).parent.parent), "HF_HUB_OFFLINE": "1"},
        check=True,
    )
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def edit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("edit") / "edit"
    spectral_edit(MLP_TARGETS, center="linear").save(directory)
    return directory


@pytest.fixture(scope="module")
def exported(edit: Path, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("exported") / "out"
    sea_export.save(SpectralEdit.load(edit), tiny_checkpoint, output, verify=False)
    return output


def test_refusals(edit: Path, exported: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    base, missing, out = tiny_checkpoint, tmp_path / "missing", tmp_path / "out"
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "notes.txt").write_text("mine")
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    changed = shutil.copytree(exported, tmp_path / "changed")
    (changed / "config.json").write_text("{}")
    vectors = tmp_path / "adapter" / "v.json"
    vectors.write_text("[1, 2]")
    taken, rows = tmp_path / "taken", ("--demonstrations", tmp_path / "missing.jsonl")
    commands: list[tuple[object, ...]] = [
        *((command, one, out) for command in ("fit", "fit-and-save", "tune") for one in (missing, taken, edit)),
        *((command, base, taken) for command in ("fit", "fit-and-save", "tune")),
        *((command, base, missing / "out") for command in ("fit", "fit-and-save", "tune")),
        *((command, base, out, *rows) for command in ("fit", "fit-and-save", "tune")),
        *((command, base, out, "--revision", "main") for command in ("fit", "fit-and-save", "tune")),
        *((command, "org/no-such-model", out) for command in ("fit", "fit-and-save", "tune")),
        ("fit", base, out, "--cache", out),
        ("fit-and-save", base, out, "--public"),
        ("fit-and-save", base, out, "--strength", "0"),
        ("fit-and-save", base, out, "--format", "merged", "--normalization", "token"),
        ("fit-and-save", base, out, "--requantize"),
        ("fit-and-save", base, out, "--requantize", "--dequantize"),
        ("fit", base, out, "--no-measure"),
        ("fit", base, out, "--layerwise", "--device-map", "auto"),
        ("fit", base, out, "--quiet", "--verbose"),
        ("tune", base, out, "--benchmark", f"bbq={missing}.jsonl"),
        ("tune", base, out, "--pick", "sideways"),
        *(("tune", base, out, "--benchmark", one) for one in ("damage", "prompts", "bbq", "mmlu=x.csv")),
        ("tune", base, out, "--text", f"{missing}.txt"),
        *((command, base, out, "--neutral-text", f"{missing}.txt") for command in ("fit", "fit-and-save")),
        ("save", missing, out, "--base", base),
        ("save", base, out, "--base", base),
        ("save", edit, out, "--base", missing),
        ("save", edit, out, "--base", edit),
        ("save", edit, out, "--base", base, "--requantize"),
        ("save", edit, out),
        ("save", edit, taken, "--base", base),
        ("save", f"{edit}*0", out, "--base", base),
        ("save", edit, out, "--base", base, "--only", "signature:2"),
        ("import", missing, out, "--model", base),
        ("import", vectors, out, "--model", base),
        ("import", vectors, taken, "--model", base, "--as", "add"),
        ("import", vectors, out, "--model", missing, "--as", "add"),
        ("import", vectors, out, "--model", base, "--as", "keep"),
        ("import", changed / "config.json", out, "--model", base, "--as", "add", "--coefficient", "0"),
        ("import", tmp_path / "adapter", out, "--model", base, "--as", "add"),
        ("verify", missing),
        ("verify", edit),
        ("verify", exported),
        ("verify", exported, "--base", missing),
        ("verify", changed, "--base", base),
        ("inspect", missing),
        ("inspect", base),
        ("inspect", edit, "--plot", missing / "picture.png"),
        ("inspect", edit, "--plot", tmp_path / "picture.doc"),
        ("inspect", edit, "--plot-activations", tmp_path / "picture.png"),
        ("inspect", edit, "--plot-activations", tmp_path / "picture.png", "--model", missing),
        *(("chat", one) for one in (missing, base, edit, exported)),
        ("chat", edit, "--base", missing),
        ("chat", edit, "--base", base, "--layers", "0"),
        ("chat", edit, "--base", base, "--port", "80"),
        ("save", edit, out, "--base", base, "--only", "0"),
        ("save", edit, out, "--base", base, "--except", "0"),
        ("diff", base, missing),
        ("diff", edit, base),
        ("evaluate", missing, "--benchmark", "damage"),
        ("evaluate", base),
        ("evaluate", base, "--benchmark", "damage", "--against", missing),
        ("evaluate", base, "--benchmark", "damage", "--edit", missing),
        ("evaluate", base, "--benchmark", f"truthfulqa={missing}.csv"),
        ("evaluate", base, "--benchmark", "truthfulqa"),
        ("evaluate", base, "--benchmark", "truthful=x.csv"),
        ("evaluate", base, "--benchmark", "damage:plain"),
        ("evaluate", base, "--benchmark", f"prompts={missing}.txt"),
        ("evaluate", base, "--benchmark", "damage", "--text", f"{missing}.txt"),
        ("evaluate", base, "--benchmark", "damage", "--against", "org/no-such-model"),
        ("evaluate", base, "--benchmark", "damage", "--strength", "0.5"),
        ("evaluate", base, "--benchmark", "damage", "--base", base),
        ("evaluate", edit, "--benchmark", "damage"),
        ("evaluate", edit, "--benchmark", "damage", "--base", missing),
        ("evaluate", edit, "--benchmark", "damage", "--base", base, "--against", base),
        ("evaluate", edit, "--benchmark", "damage", "--base", base, "--edit", edit),
        ("evaluate", edit, "--benchmark", "damage", "--base", base, "--strength", "nan"),
        ("evaluate", base, "--benchmark", "damage", "--layerwise"),
        ("evaluate", base, "--benchmark", "damage", "--revision", "main"),
        ("evaluate", base, "--benchmark", "damage", "--json", missing / "figures.json"),
        ("evaluate", base, "--benchmark", "damage", "--record", "--against", base),
        ("compare", base, missing),
        ("compare", missing, base),
        ("compare", base, "no-such-model"),
        ("compare", base, "org/no-such-model"),
        ("compare", edit, base),
        ("compare", missing, edit),
        ("compare", base, exported, "--strength", "0.5"),
        ("compare", base, base, "--prompts", f"{missing}.jsonl"),
        ("compare", base, base, "--html", missing / "page.html"),
        ("push", missing, "name"),
        ("push", exported, "name", "--create-pr", "--revision", "branch"),
        ("extract", missing, base, out),
        ("extract", base, missing, out),
        ("extract", base, base, taken),
        ("patch", "make", missing, tmp_path / "p.safetensors"),
        ("patch", "make", exported, tmp_path / "p.bin"),
        ("patch", "make", exported, missing / "p.safetensors"),
        ("patch", "apply", base, missing, out),
        ("patch", "apply", base, base / "model.safetensors", out),
        ("patch", "apply", base, missing, taken),
        ("reproduce", missing, out),
        ("reproduce", tmp_path / "missing.json", out),
        ("reproduce", exported, out),
        ("reproduce", exported, exported),
        ("doctor", missing),
        ("doctor", base, "--output", missing / "out"),
        ("doctor", base, *rows),
    ]
    wrong = [
        (command, output, modules)
        for command, (status, output, modules) in zip(commands, outcomes(commands), strict=True)
        if (status, modules) != (1 if command[:2] == ("verify", changed) else 2, [])
    ]
    assert not wrong
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "changed", "taken"]


def test_answers(edit: Path, exported: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    other = shutil.copytree(edit, tmp_path / "other")
    answers: dict[tuple[object, ...], str] = {
        ("--help",): "fit-and-save",
        ("--version",): "version",
        ("fit-and-save", "--help"): "--demonstrations",
        ("inspect", edit): "signature",
        ("inspect", exported): "signature",
        ("inspect", other): "constant",
        ("diff", tiny_checkpoint, exported): "tensors differ",
        ("diff", exported, exported): "0 tensors differ",
    }
    for (command, told), (status, output, modules) in zip(answers.items(), outcomes(list(answers)), strict=True):
        assert (status, modules) == (0, []), (command, output)
        assert told in output


@pytest.mark.parametrize(
    "command",
    [lambda base, out: ("fit", base, out, "--device", "none"), lambda base, out: ("doctor",)],
    ids=["fit", "doctor"],
)
def test_what_computes_does_import_it(
    command: Callable[..., tuple[object, ...]], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    ((_, _, modules),) = outcomes([command(tiny_checkpoint, tmp_path / "out")])
    assert "torch" in modules
