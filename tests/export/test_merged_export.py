"""A merged checkpoint is the base with the edit folded in, and nothing else."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

import sea_export
from sea_export.edit.spectral_edit import SpectralEdit
from sea_export.model.checkpoint import Checkpoint
from tests.helpers.messages import naming
from tests.helpers.tiny_models import random_model, tiny_config, tiny_model

PROMPT = [7, 60, 31, 200, 5, 90, 17, 44]


def logits(model: PreTrainedModel) -> torch.Tensor:
    with torch.inference_mode():
        return model(torch.tensor([PROMPT])).logits


def run_time_logits(model: PreTrainedModel, edit: SpectralEdit) -> torch.Tensor:
    with edit.apply(model):
        return logits(model)


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return float((actual - expected).abs().max() / expected.abs().max())


VARIANTS = {
    "plain": {},
    "average": {"normalization": "average"},
    "calibrated": {"normalization": "calibrated"},
    "strength": {"strength": 0.4},
    "positive": {"projections": "positive"},
    "reversed": {"projections": "reversed"},
    "attention": {"target": "attention"},
    "both": {"target": "both"},
    "affine": {"center": "affine"},
    "affine both": {"center": "affine", "target": "both", "normalization": "calibrated"},
    "linear": {"center": "linear", "normalization": "calibrated"},
    "gradient": {"method": "gradient", "strength": 0.5},
    "natural gradient, both": {"method": "natural-gradient", "target": "both", "center": "linear"},
    "linear map": {"method": "natural-gradient", "form": "linear", "strength": 0.1},
    "map of low rank": {"method": "gradient", "form": "low-rank", "rank": 3},
    "mean difference": {"method": "mean-difference"},
    "erasure": {"method": "erasure"},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_merged_checkpoint_computes_the_run_time_edit(
    variant: str, llama: PreTrainedModel, tiny_checkpoint: Path, fit_tiny: Callable[..., SpectralEdit], tmp_path: Path
) -> None:
    edit = fit_tiny(llama, **VARIANTS[variant])
    sea_export.save(edit, tiny_checkpoint, tmp_path / "out", verify=False)
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    expected = run_time_logits(llama, edit)
    assert relative_error(logits(exported), expected) < 1e-5
    assert relative_error(logits(llama), expected) > 1e-2, "the edit must do something for the test to mean anything"


FAMILY_EDITS: dict[str, dict[str, object]] = {
    "mlp": {},
    "attention": {"target": "attention"},
    "constant from gradients": {"method": "natural-gradient", "center": "linear", "target": "both"},
    "low rank from gradients": {"method": "gradient", "form": "low-rank", "rank": 3},
}


@pytest.mark.parametrize("name", FAMILY_EDITS)
def test_every_family_merges(
    name: str,
    any_model: PreTrainedModel,
    tiny_checkpoint_of: Callable[[str], Path],
    fit_tiny: Callable[..., SpectralEdit],
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    """Experts, biases, tied embeddings, and norms after the block included."""
    edit = fit_tiny(any_model, **FAMILY_EDITS[name])
    checkpoint = tiny_checkpoint_of(request.node.callspec.params["any_model"])
    sea_export.save(edit, checkpoint, tmp_path / "out", verify=False)
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    expected = run_time_logits(any_model, edit)
    assert relative_error(logits(exported), expected) < 1e-5
    assert relative_error(logits(any_model), expected) > 1e-4, "the edit does something"


def test_everything_but_the_edited_tensors_is_byte_identical(
    llama: PreTrainedModel, tiny_sharded_checkpoint: Path, fit_tiny: Callable[..., SpectralEdit], tmp_path: Path
) -> None:
    source = tmp_path / "base"
    shutil.copytree(tiny_sharded_checkpoint, source)
    (source / "README.md").write_text("---\nlicense: apache-2.0\n---\n# The base\n", encoding="utf-8")
    (source / "extra").mkdir()
    (source / "extra" / "notes.txt").write_bytes(b"\x00kept\r\n")
    edit = fit_tiny(llama)
    sea_export.save(edit, source, tmp_path / "out", verify=False)
    base, written = Checkpoint.open(source), Checkpoint.open(tmp_path / "out")
    changed = {
        name
        for name in base.tensors
        if not torch.equal(base.read(name).view(torch.uint8), written.read(name).view(torch.uint8))
    }
    assert changed == {f"model.layers.{layer}.mlp.down_proj.weight" for layer in (1, 2, 3)}
    assert base.tensors == written.tensors, "names, dtypes, shapes, shards and offsets stay"
    for file in base.side_files():
        assert (source / file).read_bytes() == (tmp_path / "out" / file).read_bytes(), file
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "license: apache-2.0" in card
    assert "# The base" not in card


def test_same_inputs_give_the_same_bytes(
    llama: PreTrainedModel, tiny_checkpoint: Path, fit_tiny: Callable[..., SpectralEdit], tmp_path: Path
) -> None:
    for name in ("one", "two"):
        sea_export.save(fit_tiny(llama, center="linear"), tiny_checkpoint, tmp_path / name, verify=False)
    files = {path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*") if path.is_file()}
    assert Path("sea_edit/sea_edit.safetensors") in files
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes(), file


def test_half_precision_is_rounded_once(
    llama: PreTrainedModel, fit_tiny: Callable[..., SpectralEdit], tmp_path: Path
) -> None:
    copy.deepcopy(llama).to(torch.bfloat16).save_pretrained(tmp_path / "base")
    edit = fit_tiny(llama)
    sea_export.save(edit, tmp_path / "base", tmp_path / "out", verify=False)
    name = "model.layers.2.mlp.down_proj.weight"
    stored = Checkpoint.open(tmp_path / "base").read(name)
    (layer,) = edit.layers[sea_export.Target(2, "mlp")]
    exact = layer.linear(stored.double().T).T
    written = Checkpoint.open(tmp_path / "out").read(name)
    assert written.dtype == torch.bfloat16
    unit = torch.finfo(torch.bfloat16).eps * exact.abs()
    assert ((written.double() - exact).abs() <= 0.5 * unit * (1 + 1e-3) + 1e-6).all()


def test_composed_edits_are_baked_in_order(
    llama: PreTrainedModel, tiny_checkpoint: Path, fit_tiny: Callable[..., SpectralEdit], tmp_path: Path
) -> None:
    first, second = fit_tiny(llama), fit_tiny(llama, normalization="calibrated", layers="2", center="linear")
    sea_export.save(sea_export.compose([first, second]), tiny_checkpoint, tmp_path / "out", verify=False)
    exported = logits(AutoModelForCausalLM.from_pretrained(tmp_path / "out"))
    with first.apply(llama), second.apply(llama):
        assert relative_error(exported, logits(llama)) < 1e-5
    with second.apply(llama), first.apply(llama):
        assert relative_error(exported, logits(llama)) > 1e-4


def test_affine_edit_turns_on_the_bias_that_the_architecture_has(
    llama: PreTrainedModel, tiny_sharded_checkpoint: Path, fit_tiny: Callable[..., SpectralEdit], tmp_path: Path
) -> None:
    saved = sea_export.save(fit_tiny(llama, center="affine"), tiny_sharded_checkpoint, tmp_path / "out")
    assert "and 12 biases are added" in saved.verification.statement, "of three projections in each of four layers"
    base, written = (
        json.loads((directory / "config.json").read_text(encoding="utf-8"))
        for directory in (tiny_sharded_checkpoint, tmp_path / "out")
    )
    assert written == {**base, "mlp_bias": True}
    tensors = Checkpoint.open(tmp_path / "out")
    assert tensors.read("model.layers.0.mlp.down_proj.bias").eq(0).all(), "layer 0 is not edited"
    assert tensors.read("model.layers.3.mlp.up_proj.bias").eq(0).all(), "only the output projection gets a constant"
    assert not tensors.read("model.layers.3.mlp.down_proj.bias").eq(0).any()


def test_affine_edit_is_refused_where_there_is_no_bias(
    tiny_checkpoint_of: Callable[[str], Path], fit_tiny: Callable[..., SpectralEdit], tmp_path: Path
) -> None:
    edit = fit_tiny(tiny_model("qwen3"), center="affine")
    with pytest.raises(
        sea_export.InputError, match=naming("model.layers.1.mlp.down_proj.bias", "qwen3", 'center="linear"')
    ):
        sea_export.save(edit, tiny_checkpoint_of("qwen3"), tmp_path / "out", verify=False)
    assert list(tmp_path.iterdir()) == []


def test_another_base_is_refused_unless_forced(
    llama: PreTrainedModel, tiny_checkpoint: Path, fit_tiny: Callable[..., SpectralEdit], tmp_path: Path
) -> None:
    sea_export.save(fit_tiny(llama), tiny_checkpoint, tmp_path / "out", verify=False)
    edit = SpectralEdit.load(tmp_path / "out")
    random_model(tiny_config("llama"), seed=1).save_pretrained(tmp_path / "other")
    with pytest.raises(sea_export.InputError, match=naming("other", "force=True")):
        sea_export.save(edit, tmp_path / "other", tmp_path / "wrong", verify=False)
    assert not (tmp_path / "wrong").exists()
    sea_export.save(edit, tmp_path / "other", tmp_path / "forced", verify=False, force=True)
    sea_export.save(edit, tiny_checkpoint, tmp_path / "right", verify=False)


def test_edit_of_another_size_is_refused(
    fit_tiny: Callable[..., SpectralEdit], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    config = tiny_config("llama")
    config.hidden_size, config.head_dim = 32, 8
    edit = fit_tiny(random_model(config))
    with pytest.raises(sea_export.InputError, match=naming(32)):
        sea_export.save(edit, tiny_checkpoint, tmp_path / "out", verify=False)


def test_quantized_base_is_refused(
    llama: PreTrainedModel, tiny_checkpoint: Path, fit_tiny: Callable[..., SpectralEdit], tmp_path: Path
) -> None:
    shutil.copytree(tiny_checkpoint, tmp_path / "base")
    config = json.loads((tmp_path / "base" / "config.json").read_text(encoding="utf-8"))
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (tmp_path / "base" / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(sea_export.InputError, match=naming("base", "gptq")):
        sea_export.save(fit_tiny(llama), tmp_path / "base", tmp_path / "out", verify=False)


def test_manifest_tells_what_was_done(
    llama: PreTrainedModel, tiny_checkpoint: Path, fit_tiny: Callable[..., SpectralEdit], tmp_path: Path
) -> None:
    sea_export.save(fit_tiny(llama, strength=0.5), tiny_checkpoint, tmp_path / "out", verify=False)
    text = (tmp_path / "out" / "sea_export.json").read_text(encoding="utf-8")
    manifest = json.loads(text)
    assert manifest["edit"]["options"]["edit"]["strength"] == 0.5
    assert manifest["edit"]["demonstrations"]["count"] == 8
    assert set(manifest["edited_tensors"]) == {f"model.layers.{layer}.mlp.down_proj.weight" for layer in (1, 2, 3)}
    assert manifest["base"]["name"] == tiny_checkpoint.name
    assert str(tiny_checkpoint.parent) not in text, "no local path is ever written"
