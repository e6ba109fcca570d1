"""What can be refused before the work is refused before it: in a second, and with nothing written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

from sea_export.cli import main
from sea_export.errors import InputError
from sea_export.evaluation.evaluation_options import EvaluateOptions
from sea_export.fitting import collect
from sea_export.model.load_model import choose_device
from sea_export.options import CaptureOptions
from sea_export.tuning.tuning_options import TuneOptions
from tests.helpers.messages import assert_names, naming
from tests.helpers.parameters import UNMEASURED


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture(autouse=True)
def empty_folder(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names such as `out` stand for nothing: in the repository scripts/quickstart has made a folder of that name."""
    monkeypatch.chdir(tmp_path_factory.mktemp("empty"))


@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine on which every fit fails."""

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("work has begun")

    monkeypatch.setattr(collect, "capture_batches", fail)


# Options


@pytest.mark.parametrize("seed", [-1, 2**31, 2**32, 2**70])
def test_seeds_that_some_library_does_not_take(seed: int) -> None:
    for options, needed in ((CaptureOptions, {}), (TuneOptions, {}), (EvaluateOptions, {"benchmarks": ("damage",)})):
        with pytest.raises(InputError, match=naming("--seed", seed)):
            options(seed=seed, **needed)
    for command in (
        ["fit", "m", "e"],
        ["evaluate", "m", "--benchmark", "damage"],
        ["tune", "m", "o"],
        ["inspect", "e"],
    ):
        result = run(*command, "--seed", seed)
        assert result.exit_code == 2
        assert_names(result.stderr, "--seed")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(("--max-kl", value) for value in ("inf", "nan", "0", "-1")),
        *(("--timeout", value) for value in ("0", "-5", "nan", "inf")),
        *(("--pick", value) for value in ("60", "1000", "-1", "worst")),
        *(("--choosing", value) for value in ("nan", "1")),
        ("--held-out", "nan"),
    ],
)
def test_numbers_of_a_search_that_are_out_of_range(option: str, value: str) -> None:
    result = run("tune", "model", "out", option, value)
    assert result.exit_code == 2
    assert_names(result.stderr, option)


@pytest.mark.parametrize(
    "options",
    [["--strength", "0"], ["--public"], ["--strength", "nan"], ["--held-out", "1"]],
    ids=" ".join,
)
def test_options_of_a_fit_that_lead_nowhere(options: Sequence[str]) -> None:
    result = run("fit-and-save", "model", "out", *options)
    assert result.exit_code == 2
    assert_names(result.stderr, options[0])


@pytest.mark.parametrize("device", ["foo", "meta", "cuda:99", "cpu:7", "", "fpga", "cuda:-1", "vulkan"])
def test_devices_that_this_machine_does_not_have(device: str) -> None:
    with pytest.raises(InputError, match=naming("--device")):
        choose_device(device)


def test_devices_that_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    for device in ("cpu", "cpu:0"):
        assert choose_device(device) == device
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device("cuda:1") == "cuda:1"
    with pytest.raises(InputError, match=naming("cuda:2")):
        choose_device("cuda:2")


# Places


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize("cache", ["out", "out/cache"])
@pytest.mark.parametrize("command", ["fit", "fit-and-save"])
def test_a_cache_in_the_output(command: str, cache: str, tiny_checkpoint: Path, tmp_path: Path) -> None:
    result = run(command, tiny_checkpoint, tmp_path / "out", "--cache", tmp_path / cache)
    assert result.exit_code == 2
    assert_names(result.stderr, tmp_path / cache)
    assert list(tmp_path.iterdir()) == []


# Bases


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize("format", ["merged", "custom-code"])
@pytest.mark.parametrize("taken", ["sea_edit", "sea_export.json/notes", "README.md/notes", "README.md/a/b"])
def test_bases_with_files_where_an_output_has_its_own(
    taken: str, format: str, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    base = shutil.copytree(tiny_checkpoint, tmp_path / "base")
    (base / taken).parent.mkdir(parents=True, exist_ok=True)
    (base / taken).write_text("mine")
    result = run("fit-and-save", base, tmp_path / "out", "--format", format)
    assert result.exit_code == 2
    assert_names(result.stderr, taken)
    assert list(tmp_path.iterdir()) == [base]


@pytest.mark.usefixtures("no_work")
def test_a_base_with_a_file_that_its_weights_get_the_name_of(tiny_checkpoint: Path, tmp_path: Path) -> None:
    base = shutil.copytree(tiny_checkpoint, tmp_path / "base")
    (base / "base-model.safetensors").write_text("mine")
    result = run("fit-and-save", base, tmp_path / "out", "--format", "custom-code")
    assert result.exit_code == 2
    assert_names(result.stderr, "base-model.safetensors")


def test_names_that_only_look_like_ours(tiny_checkpoint: Path, tmp_path: Path, fit_tiny: Any, llama: Any) -> None:
    """They are copied, or replaced by what the output has under that name, and every digest is that of its file."""
    base = shutil.copytree(tiny_checkpoint, tmp_path / "base")
    for name in ("modeling_sea.py", "sea-edit.safetensors", "docs/sea_export.json", "sea_edit.txt"):
        (base / name).parent.mkdir(exist_ok=True)
        (base / name).write_text("x = 1")
    fit_tiny(llama).save(tmp_path / "edit")
    for format in ("merged", "custom-code"):
        output = tmp_path / format
        save = ("save", tmp_path / "edit", output, "--base", base, "--no-verify", "--force")
        result = run(*save, "--format", format, "--trust-remote-code")
        assert result.exit_code == 0, result.output
        manifest = json.loads((output / "sea_export.json").read_text(encoding="utf-8"))
        assert manifest["files"] == {
            name: digest for name, digest in digests_of(output).items() if name != "sea_export.json"
        }
        assert (output / "docs" / "sea_export.json").read_text() == "x = 1"
        assert ((output / "modeling_sea.py").read_text() == "x = 1") == (format == "merged")


def digests_of(directory: Path) -> dict[str, str]:
    from sea_export.files.digests import file_digests

    return file_digests(directory)


def test_a_config_with_infinity_is_kept(tiny_checkpoint: Path, tmp_path: Path, fit_tiny: Any, llama: Any) -> None:
    base = shutil.copytree(tiny_checkpoint, tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "time_step_limit": [0.0, float("inf")]}))
    fit_tiny(llama).save(tmp_path / "edit")
    for format in ("merged", "custom-code"):
        save = ("save", tmp_path / "edit", tmp_path / format, "--base", base, "--no-verify", "--format", format)
        result = run(*save, "--force")
        assert result.exit_code == 0, result.output
        written = json.loads((tmp_path / format / "config.json").read_text())
        assert written["time_step_limit"] == [0.0, float("inf")]


def test_edits_that_cannot_become_a_card(
    tiny_checkpoint: Path, tmp_path: Path, fit_tiny: Any, llama: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything is written."""
    fit_tiny(llama).save(tmp_path / "edit")
    file = tmp_path / "edit" / "sea_edit.json"
    whole = json.loads(file.read_text(encoding="utf-8"))
    monkeypatch.setattr("sea_export.saving.staged_output", lambda *_, **__: pytest.fail("it is written"))
    for change in (
        {"options": {"edit": {}, "capture": {}}},
        {
            "tuning": {"benchmark": "b", "metric": "m", "pick": "best", "rows": 1, "max_kl": 0.1, "trials": 1},
            "x": 1e999,
        },
    ):
        file.write_text(json.dumps({**whole, "provenance": {**whole["provenance"], **change}}), encoding="utf-8")
        result = run("save", tmp_path / "edit", tmp_path / "out", "--base", tiny_checkpoint, "--no-verify")
        assert result.exit_code == 2, result.output
        assert_names(result.stderr, "sea_edit.json")


# Texts


ROWS = {
    "multiple-choice": {"question": "Is it?", "choices": ["Yes.", "No."], "label": 0},
    "truthfulqa": {
        **{"category": "c", "question": "Is it?", "best_answer": "Yes."},
        **{"correct_answers": ["Yes."], "incorrect_answers": ["No."]},
    },
    "crows-pairs": {"sent_more": "One.", "sent_less": "Two.", "bias_type": "age"},
}


@pytest.mark.parametrize("wrong", ["\ud800", "a\udfffb", 7, None, ["x"]])
@pytest.mark.parametrize("benchmark", ROWS)
def test_rows_of_benchmarks_that_are_no_text(
    benchmark: str, wrong: object, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In every column that is read. The model is not opened."""
    monkeypatch.setattr("sea_export.evaluation.evaluate.open_loaded_model", lambda *_: pytest.fail("it is opened"))
    file = tmp_path / "rows.jsonl"
    for column, value in ROWS[benchmark].items():
        if column == "label":
            continue
        changed = [wrong, *value[1:]] if isinstance(value, list) else wrong
        rows = [ROWS[benchmark], {**ROWS[benchmark], column: changed}]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        result = run("evaluate", tiny_checkpoint, "--benchmark", f"{benchmark}={file}")
        assert result.exit_code == 2, (column, result.output)
        assert_names(result.stderr, "rows.jsonl, row 2")


def test_names_that_are_no_text(tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = shutil.copytree(tiny_checkpoint, tmp_path / "m\udcff")
    for arguments in (["fit", base, tmp_path / "out"], ["fit", tiny_checkpoint, tmp_path / "out\udcff"]):
        result = run(*arguments, *UNMEASURED)
        assert result.exit_code == 2
        assert_names(result.stderr, "UTF-8")
    monkeypatch.chdir(base)  # the name is not in the arguments
    result = run("fit", ".", tmp_path / "out", *UNMEASURED)
    assert result.exit_code == 2
    assert_names(result.stderr, "UTF-8")


@pytest.mark.parametrize("command", [("verify",), ("reproduce", "out")])
def test_a_weight_file_is_no_manifest(command: tuple[str, ...], tmp_path: Path) -> None:
    """Not "it is not valid JSON": that file is as it should be."""
    weights = tmp_path / "model.gguf"
    weights.write_bytes(b"GGUF")
    first, *others = command
    result = run(first, weights, *others)
    assert result.exit_code == 2
    assert_names(result.stderr, "model.gguf", "no manifest", "sea_export.json")


def test_the_nearest_command_is_named() -> None:
    result = run("verfy", "out")
    assert result.exit_code == 2
    assert_names(result.stderr, "verfy", "did you mean verify?")
