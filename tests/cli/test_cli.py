"""The command line: the main job from end to end, and one line and exit status 2 for every bad input."""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from transformers import AutoModelForCausalLM, MambaConfig, PreTrainedTokenizerFast

from sea_export.cli import main
from sea_export.demonstrations.demonstration import Demonstration
from tests.helpers.messages import assert_names
from tests.helpers.parameters import UNMEASURED
from tests.helpers.tampering import forged
from tests.helpers.tiny_models import random_model, tiny_model


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture
def demonstrations_file(demonstrations: tuple[Demonstration, ...], tmp_path: Path) -> Path:
    return write_rows(
        tmp_path / "demonstrations.jsonl",
        [{"prompt": d.prompt, "positive": d.positive, "negative": d.negative} for d in demonstrations],
    )


def write_rows(file: Path, rows: list[dict[str, object]]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


FIT = (*UNMEASURED, "--layers", "last:2", "--explained-variance", "0.7")


@pytest.mark.slow
def test_fit_and_save_writes_a_verified_checkpoint(
    tiny_checkpoint: Path, demonstrations_file: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    result = run("fit-and-save", tiny_checkpoint, output, "--demonstrations", demonstrations_file, *FIT)
    assert result.exit_code == 0, result.output
    manifest = json.loads((output / "sea_export.json").read_text(encoding="utf-8"))
    assert manifest["verification"]["problems"] == []
    assert manifest["verification"]["changed_tensors"] == 2
    AutoModelForCausalLM.from_pretrained(output)

    figures = manifest.pop("verification")
    (output / "sea_export.json").write_text(json.dumps(manifest), encoding="utf-8")
    result = run("verify", output, "--base", tiny_checkpoint)
    assert result.exit_code == 0, result.output
    again = json.loads((output / "sea_export.json").read_text(encoding="utf-8"))["verification"]
    assert again["problems"] == []
    assert again["effect"]["mean_divergence"] == pytest.approx(figures["effect"]["mean_divergence"], rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("format", ["merged", "adapter", "custom-code", "gguf-adapter"])
def test_a_fit_that_chooses_layers_by_their_signature_is_saved(
    format: str, tiny_checkpoint: Path, demonstrations_file: Path, tmp_path: Path
) -> None:
    options = ("--demonstrations", demonstrations_file, "--layers", "signature:2", "--explained-variance", "0.7")
    output = tmp_path / "out"
    result = run("fit-and-save", tiny_checkpoint, output, *options, "--format", format)
    assert result.exit_code == 0, result.output
    manifest = json.loads((output / "sea_export.json").read_text(encoding="utf-8"))
    assert len(manifest["layers"]) == 2
    assert manifest["verification"]["problems"] == []


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_model_that_was_rounded_to_be_fitted_is_not_what_its_export_is_verified_against(
    dtype: str, tiny_checkpoint: Path, demonstrations_file: Path, tmp_path: Path
) -> None:
    options = ("--demonstrations", demonstrations_file, *FIT, "--dtype", dtype)
    result = run("fit-and-save", tiny_checkpoint, tmp_path / "out", *options)
    assert result.exit_code == 0, result.output
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").dtype == torch.float32


def test_fit_then_save_gives_the_bytes_of_fit_and_save(
    tiny_checkpoint: Path, demonstrations_file: Path, tmp_path: Path
) -> None:
    options = ("--demonstrations", demonstrations_file, *FIT)
    assert run("fit", tiny_checkpoint, tmp_path / "edit", *options).exit_code == 0
    save = ("save", tmp_path / "edit", tmp_path / "two-steps", "--base", tiny_checkpoint, "--no-verify")
    assert run(*save).exit_code == 0
    one_step = ("fit-and-save", tiny_checkpoint, tmp_path / "one-step", *options, "--no-verify")
    assert run(*one_step).exit_code == 0
    assert run(*one_step).exit_code == 2, "an existing output is refused"
    assert run(*one_step, "--overwrite").exit_code == 0
    files = [path.relative_to(tmp_path / "one-step") for path in (tmp_path / "one-step").rglob("*") if path.is_file()]
    for file in files:
        assert (tmp_path / "one-step" / file).read_bytes() == (tmp_path / "two-steps" / file).read_bytes(), file


@pytest.mark.slow
def test_a_quantized_base_is_merged_into_plain_weights(
    quantized_checkpoint: Path, demonstrations_file: Path, tmp_path: Path
) -> None:
    output, given = tmp_path / "out", ("--demonstrations", demonstrations_file, "--layers", "last:2")
    assert_refused(
        run("fit-and-save", quantized_checkpoint, output, *given),
        ["bitsandbytes", "--dequantize"],
        tmp_path,
        [demonstrations_file],
    )
    result = run("fit-and-save", quantized_checkpoint, output, *given, "--dequantize", "--dtype", "float32")
    assert result.exit_code == 0, result.output
    assert "quantization_config" not in json.loads((output / "config.json").read_text())
    assert AutoModelForCausalLM.from_pretrained(output).dtype == torch.float32
    verified = run("verify", output, "--base", quantized_checkpoint)
    assert verified.exit_code == 0, verified.output


@pytest.mark.slow
def test_verify_fails_on_a_checkpoint_that_is_not_the_edit(
    tiny_checkpoint: Path, demonstrations_file: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    options = ("--demonstrations", demonstrations_file, *FIT, "--no-verify")
    assert run("fit-and-save", tiny_checkpoint, output, *options).exit_code == 0
    shutil.copy(tiny_checkpoint / "model.safetensors", output / "model.safetensors")
    result = run("verify", output, "--base", tiny_checkpoint)
    assert result.exit_code == 1
    assert_names(result.output, "model.safetensors", "Not checked: ")
    forged(output)
    result = run("verify", output, "--base", tiny_checkpoint)
    assert result.exit_code == 1
    assert_names(result.output, "model.layers.2.mlp.down_proj.weight", "model.layers.3.mlp.down_proj.weight")


def test_inspect_and_plot_and_diff(tiny_checkpoint: Path, demonstrations_file: Path, tmp_path: Path) -> None:
    output, picture = tmp_path / "out", tmp_path / "edit.png"
    options = ("--demonstrations", demonstrations_file, *FIT, "--no-verify")
    run("fit-and-save", tiny_checkpoint, output, *options)
    result = run("inspect", output, "--plot", picture)
    assert result.exit_code == 0, result.output
    assert picture.read_bytes().startswith(b"\x89PNG")
    result = run("diff", tiny_checkpoint, output)
    assert result.exit_code == 0
    assert "model.layers.3.mlp.down_proj.weight" in result.output
    assert_names(result.output, "2 tensors")
    assert_names(run("diff", output, output).output, "0 tensors")


def test_help_is_instant() -> None:
    """Help must not pay for importing torch, and names every default."""
    code = (
        "import sys; from sea_export.cli import main; from click.testing import CliRunner;"
        "text = CliRunner().invoke(main, ['fit-and-save', '--help']).output;"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules; print(text)"
    )
    text = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "[default: last:60%]" in " ".join(text.split())
    assert "--explained-variance" in text


ROW = {"prompt": "Is the sea deep?", "positive": "Yes.", "negative": "No, not at all."}
LONG = {"prompt": "word " * 600, "positive": "Yes.", "negative": "No."}
BAD_ROWS = {
    "wrong columns": ([{"text": "a"}, {"text": "b"}], ["rows.jsonl", "--prompt-field"]),
    "empty prompt": ([ROW, {**ROW, "prompt": " "}], ["rows.jsonl, row 2", "'prompt'"]),
    "empty completion": ([ROW, {**ROW, "negative": ""}], ["rows.jsonl, row 2", "'negative'"]),
    "equal completions": ([ROW, {**ROW, "negative": "Yes."}], ["rows.jsonl, row 2", "equal"]),
    "one demonstration": ([ROW], ["rows.jsonl", 1, 2]),
    "no room for a completion": ([ROW, LONG], ["rows.jsonl, row 2", 256]),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_bad_demonstrations(case: str, tiny_checkpoint: Path, tmp_path: Path) -> None:
    rows, facts = BAD_ROWS[case]
    file = write_rows(tmp_path / "rows.jsonl", rows)
    result = run("fit-and-save", tiny_checkpoint, tmp_path / "out", "--demonstrations", file, *FIT)
    assert_refused(result, facts, tmp_path, [file])


BAD_OPTIONS = {
    "missing file": (["--demonstrations", "nowhere.jsonl"], ["nowhere.jsonl"]),
    "unknown layer": (["--layers", "2-9"], ["layer 9", 0, 3]),
    "too many layers": (["--layers", "last:9"], ["--layers", "last:9", 4]),
    "unreadable layers": (["--layers", "some"], ["--layers", "'some'", "signature:K"]),
    "variance of 0": (["--explained-variance", "0"], ["--explained-variance", 0.0]),
    "variance above 1": (["--negative-variance", "1.5"], ["--negative-variance", 1.5]),
    "infinite strength": (["--strength", "inf"], ["--strength", "inf"]),
    "unknown choice": (["--center", "middle"], ["--center", "'middle'", "affine"]),
    "too high a rank": (["--layers", "1", "--positive-rank", "500"], ["--positive-rank", 500]),
}


@pytest.mark.parametrize("case", BAD_OPTIONS)
def test_bad_options(case: str, tiny_checkpoint: Path, demonstrations_file: Path, tmp_path: Path) -> None:
    options, facts = BAD_OPTIONS[case]
    given = ["--demonstrations", demonstrations_file, *options]
    result = run("fit-and-save", tiny_checkpoint, tmp_path / "out", *given)
    assert_refused(result, facts, tmp_path, [demonstrations_file])


def test_activations_beyond_the_largest_number(
    demonstrations_file: Path,
    tokenizer: PreTrainedTokenizerFast,
    tmp_path_factory: pytest.TempPathFactory,
    tmp_path: Path,
) -> None:
    directory = tmp_path_factory.mktemp("huge")
    model = copy.deepcopy(tiny_model("llama"))
    with torch.no_grad():
        model.model.layers[3].mlp.down_proj.weight.fill_(3e38)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    result = run("fit-and-save", directory, tmp_path / "out", "--demonstrations", demonstrations_file, *FIT)
    assert_refused(result, ["layer 3, mlp"], tmp_path, [demonstrations_file])


def test_base_without_an_mlp(
    demonstrations_file: Path,
    tokenizer: PreTrainedTokenizerFast,
    tmp_path_factory: pytest.TempPathFactory,
    tmp_path: Path,
) -> None:
    directory = tmp_path_factory.mktemp("mamba")
    config = MambaConfig(hidden_size=16, num_hidden_layers=2, vocab_size=320, state_size=4)
    random_model(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    result = run("fit-and-save", directory, tmp_path / "out", "--demonstrations", demonstrations_file)
    assert_refused(result, ["MambaForCausalLM", "MLP", "attention"], tmp_path, [demonstrations_file])


def test_output_that_exists(tiny_checkpoint: Path, demonstrations_file: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    output.mkdir()
    (output / "thesis.txt").write_text("years of work", encoding="utf-8")
    options = ("--demonstrations", demonstrations_file)
    assert_refused(
        run("fit-and-save", tiny_checkpoint, output, *options),
        [output, "--overwrite"],
        tmp_path,
        [demonstrations_file, output],
    )
    forced = run("fit-and-save", tiny_checkpoint, output, *options, "--overwrite")
    assert forced.exit_code == 2, "only what sea-export wrote is ever replaced"
    assert (output / "thesis.txt").read_text(encoding="utf-8") == "years of work"


@pytest.mark.usefixtures("no_capture")
def test_not_enough_disk(
    tiny_checkpoint: Path, demonstrations_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    result = run("fit-and-save", tiny_checkpoint, tmp_path / "out", "--demonstrations", demonstrations_file)
    assert_refused(result, [tmp_path / "out", "0.00 GB"], tmp_path, [demonstrations_file])


@pytest.mark.slow
def test_hub_id_that_cannot_be_reached(demonstrations_file: Path, tmp_path: Path) -> None:
    """In a process of its own, because huggingface_hub reads its settings when it is imported."""
    command = [sys.executable, "-m", "sea_export", "fit-and-save", "nobody/nothing", str(tmp_path / "out")]
    environment = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "hub"), "PATH": "/usr/bin:/bin"}
    process = subprocess.run(
        [*command, "--demonstrations", str(demonstrations_file)],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert process.returncode == 2, process.stderr
    assert "nobody/nothing" in process.stderr
    assert "Traceback" not in process.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "command", [("inspect", "{}"), ("verify", "{}"), ("save", "{}", "{}/out"), ("diff", "{}", "{}")], ids=lambda c: c[0]
)
def test_directory_that_holds_nothing_of_ours(command: tuple[str, ...], tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    result = run(*(part.format(empty) for part in command))
    assert_refused(result, [empty], tmp_path, [empty])
    assert list(empty.iterdir()) == []


def assert_refused(result: Result, facts: Sequence[object], directory: Path, expected: list[Path]) -> None:
    """One clear line, exit status 2, and nothing written."""
    assert result.exit_code == 2, result.output
    assert_names(result.stderr, *facts)
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    assert "Traceback" not in result.output
    assert len([line for line in lines if line.startswith("Error:")]) == 1, result.stderr
    assert sorted(directory.iterdir()) == sorted(expected)
