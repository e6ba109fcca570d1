"""A custom-code export is verified without running code that is not ours, and made by the command line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers.dynamic_module_utils
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

import sea_export
from sea_export.cli import main
from sea_export.edit.spectral_edit import SpectralEdit
from sea_export.export.custom_code.code_plan import CODE_FILE, EDIT_SHARD
from sea_export.model.checkpoint import Checkpoint
from tests.helpers.custom_code_models import TANH, load, logits, relative_error
from tests.helpers.messages import assert_names, naming
from tests.helpers.parameters import UNMEASURED
from tests.helpers.tampering import forged
from tests.helpers.tiny_models import tiny_model

pytestmark = pytest.mark.slow


def saved(edit: SpectralEdit, base: Path, output: Path) -> sea_export.Verification:
    verification = sea_export.save(edit, base, output, format="custom-code").verification
    assert verification is not None
    return verification


def test_a_verified_export_says_what_was_measured(fit_tiny, llama, tiny_sharded_checkpoint, tmp_path) -> None:
    edit = fit_tiny(llama, feature_function="tanh", normalization="sequence")
    verification = saved(edit, tiny_sharded_checkpoint, tmp_path / "out")
    assert verification.passed
    assert verification.rounding_error == verification.fold_error
    assert verification.rounding_error.mean_divergence < 1e-11
    assert verification.rounding_error.top1_agreement == 1
    assert verification.effect.mean_divergence > 1e-3
    assert verification.changed_tensors == 0
    assert verification.identical_tensors == len(Checkpoint.open(tiny_sharded_checkpoint).tensors)
    assert "6 tensors of the edit stand beside them" in verification.statement
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "trust_remote_code=True" in card
    assert CODE_FILE in card
    assert "generation with a cache differs" in card
    manifest = json.loads((tmp_path / "out" / "sea_export.json").read_text(encoding="utf-8"))
    assert manifest["format"] == "custom-code"
    assert manifest["files"]["base-" + next(iter(Checkpoint.open(tiny_sharded_checkpoint).weight_files))]
    assert {layer["feature_function"] for layer in manifest["layers"]} == {"tanh"}
    again = sea_export.verify(tmp_path / "out", tiny_sharded_checkpoint)
    assert again.passed
    assert again.rounding_error.top1_agreement == 1


def test_verification_leaves_no_copy_of_the_code_behind(fit_tiny, llama, tiny_checkpoint, tmp_path) -> None:
    cache = Path(transformers.dynamic_module_utils.HF_MODULES_CACHE)
    before = set(cache.rglob("*.py"))
    saved(fit_tiny(llama), tiny_checkpoint, tmp_path / "out")
    assert set(cache.rglob("*.py")) == before


def tampered(output: Path, tensors: dict[str, torch.Tensor]) -> None:
    shard = output / EDIT_SHARD
    save_file({**load_file(shard), **tensors}, shard, metadata={"format": "pt"})


def test_verification_finds_what_is_not_the_edit(fit_tiny, llama, tiny_checkpoint, tmp_path) -> None:
    sea_export.save(fit_tiny(llama, **TANH), tiny_checkpoint, tmp_path / "out", format="custom-code", verify=False)
    name = "model.layers.2.mlp.sea_edit.0.kept_directions"
    tampered(tmp_path / "out", {name: load_file(tmp_path / "out" / EDIT_SHARD)[name].flip(1).contiguous()})
    forged(tmp_path / "out")
    problems = "; ".join(sea_export.verify(tmp_path / "out", tiny_checkpoint).problems)
    assert_names(problems, name)


def test_verification_finds_that_the_base_was_changed(fit_tiny, llama, tiny_checkpoint, tmp_path) -> None:
    sea_export.save(fit_tiny(llama), tiny_checkpoint, tmp_path / "out", format="custom-code", verify=False)
    weights = load_file(tmp_path / "out" / "base-model.safetensors")
    weights["model.layers.0.mlp.up_proj.weight"][0] += 1
    save_file(weights, tmp_path / "out" / "base-model.safetensors", metadata={"format": "pt"})
    forged(tmp_path / "out")
    problems = "; ".join(sea_export.verify(tmp_path / "out", tiny_checkpoint).problems)
    assert_names(problems, "model.layers.0.mlp.up_proj.weight")


def test_verification_finds_a_tokenizer_that_is_not_the_base_s(fit_tiny, llama, tiny_checkpoint, tmp_path) -> None:
    sea_export.save(fit_tiny(llama), tiny_checkpoint, tmp_path / "out", format="custom-code", verify=False)
    tokenizer = json.loads((tmp_path / "out" / "tokenizer.json").read_text(encoding="utf-8"))
    tokenizer["model"]["merges"] = tokenizer["model"]["merges"][:5]
    (tmp_path / "out" / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    forged(tmp_path / "out")
    problems = "; ".join(sea_export.verify(tmp_path / "out", tiny_checkpoint).problems)
    assert_names(problems, "tokenizer.json")


@pytest.mark.parametrize("part", ["code", "auto_map"])
def test_code_that_is_not_ours_is_not_run_by_verification(part: str, fit_tiny, llama, tiny_checkpoint, tmp_path):
    output, trace = tmp_path / "out", tmp_path / "trace"
    sea_export.save(fit_tiny(llama), tiny_checkpoint, output, format="custom-code", verify=False)
    foreign = (output / CODE_FILE).read_text("utf-8") + f"\n\nopen({str(trace)!r}, 'w').close()\n"
    if part == "code":
        (output / CODE_FILE).write_text(foreign, encoding="utf-8")
    else:
        (output / "other.py").write_text(foreign, encoding="utf-8")
        config = (output / "config.json").read_text(encoding="utf-8")
        (output / "config.json").write_text(config.replace("modeling_sea.", "other."), encoding="utf-8")
    forged(output)
    with pytest.raises(sea_export.InputError, match=naming("trust_remote_code=True")):
        sea_export.verify(output, tiny_checkpoint)
    assert not trace.exists()
    if part == "code":
        assert sea_export.verify(output, tiny_checkpoint, trust_remote_code=True).passed
        assert trace.exists()


def test_another_name_of_the_base_is_no_other_code(fit_tiny, llama, tiny_checkpoint, tmp_path) -> None:
    sea_export.save(fit_tiny(llama), tiny_checkpoint, tmp_path / "out", format="custom-code", verify=False)
    shutil.copytree(tiny_checkpoint, tmp_path / "elsewhere")
    assert sea_export.verify(tmp_path / "out", tmp_path / "elsewhere").passed


# The command line


def demonstrations_file(demonstrations, directory: Path) -> Path:
    file = directory / "demonstrations.jsonl"
    rows = [{"prompt": d.prompt, "positive": d.positive, "negative": d.negative} for d in demonstrations]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


FIT = ("--layers", "last:2", "--explained-variance", "0.7", *UNMEASURED)


def test_one_command_makes_a_verified_custom_code_export(tiny_checkpoint, demonstrations, tmp_path) -> None:
    file, output = demonstrations_file(demonstrations, tmp_path), tmp_path / "out"
    options = ("--format", "custom-code", "--feature-function", "tanh", "--normalization", "sequence")
    command = ("fit-and-save", tiny_checkpoint, output, "--demonstrations", file, *FIT, *options)
    result = CliRunner().invoke(main, [str(argument) for argument in command])
    assert result.exit_code == 0, result.output
    assert "trust_remote_code=True" in result.output
    assert_names(result.stderr, "Warning: ", "--normalization", "sequence")
    edit, base = SpectralEdit.load(output), tiny_model("llama")
    with edit.apply(base):
        assert relative_error(logits(load(output)), logits(base)) < 1e-5
    result = CliRunner().invoke(main, ["verify", str(output), "--base", str(tiny_checkpoint)])
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize("form", ["merged", "adapter"])
@pytest.mark.parametrize(
    ("option", "value", "nearest"),
    [
        ("--feature-function", "elu", "--feature-function identity"),
        ("--normalization", "token", "--normalization calibrated"),
    ],
)
def test_an_edit_that_does_not_fold_is_refused_before_the_model_is_opened(form, option, value, nearest, tmp_path):
    command = ["fit-and-save", str(tmp_path / "no-model"), str(tmp_path / "out"), "--format", form, option, value]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 2
    assert_names(result.output, "--format custom-code", nearest)
