"""Bases in forms that are less common, and valid: block-scaled FP8, several dtypes at once, a config without dtype, and
more shards than a process may have open files; and who may read what is written."""

from __future__ import annotations

import os
import resource
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, PreTrainedTokenizerFast

import sea_export
from sea_export.model.checkpoint import Checkpoint
from sea_export.model.diff import compare_checkpoints
from sea_export.model.targets import Target
from tests.helpers.checkpoint_files import write_sharded
from tests.helpers.hostile_checkpoints import change_json
from tests.helpers.tiny_edits import MLP_TARGETS, spectral_edit
from tests.helpers.tiny_models import random_model, tiny_model

FORMATS = ("merged", "adapter", "custom-code")
FLOAT8_MAXIMUM = 448


def block_scaled(weight: torch.Tensor, block: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight (o, i) in FP8, and the factor (o / block, i / block) of each of its blocks."""
    rows, columns = (max(1, size // block) for size in weight.shape)
    blocks = weight.reshape(rows, weight.shape[0] // rows, columns, weight.shape[1] // columns)
    scale = blocks.abs().amax((1, 3)) / FLOAT8_MAXIMUM
    return (blocks / scale[:, None, :, None]).reshape(weight.shape).to(torch.float8_e4m3fn), scale


@pytest.fixture(scope="session", params=[32, 64])
def fp8_checkpoint(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast
) -> Path:
    """A Llama whose linear maps are stored in FP8, with a factor for each block of this size. Read only."""
    directory, block = tmp_path_factory.mktemp("fp8"), request.param
    config = LlamaConfig(
        vocab_size=320,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    random_model(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    stored = {}
    for name, tensor in load_file(directory / "model.safetensors").items():
        if name.endswith("proj.weight"):
            stored[name], stored[f"{name}_scale_inv"] = block_scaled(tensor, block)
        else:
            stored[name] = tensor.bfloat16()
    save_file(stored, directory / "model.safetensors", metadata={"format": "pt"})
    settings = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [block, block]}
    change_json(directory / "config.json", lambda whole: whole | {"dtype": "bfloat16", "quantization_config": settings})
    return directory


@pytest.mark.slow
@pytest.mark.parametrize("form", ["adapter", "custom-code"])
def test_a_base_in_fp8_with_blocks(form: str, fp8_checkpoint: Path, tmp_path: Path) -> None:
    edit = spectral_edit([Target(1, "mlp"), Target(2, "attention")], size=64)
    verification = sea_export.save(edit, fp8_checkpoint, tmp_path / "out", format=form).verification
    assert verification is not None
    assert verification.passed
    assert verification.rounding_error.mean_divergence < 1e-8


MIXTURES: dict[str, dict[torch.dtype, Callable[[str], bool]]] = {
    "norms and MLPs in float32": {torch.float32: lambda name: "norm" in name or "mlp" in name},
    "one edited layer in float32": {torch.float32: lambda name: "layers.3" in name},
    "attention in float32, the head in float16": {
        torch.float32: lambda name: "attn" in name,
        torch.float16: lambda name: "lm_head" in name,
    },
}


def mixed_checkpoint(checkpoint: Path, directory: Path, mixture: str) -> Path:
    """A copy of a checkpoint in bfloat16, but for some tensors."""
    shutil.copytree(checkpoint, directory)
    tensors = load_file(directory / "model.safetensors")
    for name, tensor in tensors.items():
        dtypes = [dtype for dtype, chosen in MIXTURES[mixture].items() if chosen(name)]
        tensors[name] = tensor.to(dtypes[0] if dtypes else torch.bfloat16)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    change_json(directory / "config.json", lambda whole: whole | {"dtype": "bfloat16"})
    return directory


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("mixture", MIXTURES)
def test_a_base_of_several_dtypes(mixture: str, form: str, tiny_checkpoint: Path, tmp_path: Path) -> None:
    base = mixed_checkpoint(tiny_checkpoint, tmp_path / "base", mixture)
    verification = sea_export.save(spectral_edit(MLP_TARGETS), base, tmp_path / "out", format=form).verification
    assert verification is not None
    assert verification.passed


@pytest.mark.slow
def test_a_base_of_several_dtypes_layer_by_layer(tiny_checkpoint: Path, tmp_path: Path) -> None:
    base = mixed_checkpoint(tiny_checkpoint, tmp_path / "base", "norms and MLPs in float32")
    verification = sea_export.save(spectral_edit(MLP_TARGETS), base, tmp_path / "out", layerwise=True).verification
    assert verification is not None
    assert verification.passed


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_config_without_dtype(dtype: torch.dtype, form: str, tiny_checkpoint: Path, tmp_path: Path) -> None:
    base = shutil.copytree(tiny_checkpoint, tmp_path / "base")
    tensors = {name: tensor.to(dtype) for name, tensor in load_file(base / "model.safetensors").items()}
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    change_json(base / "config.json", lambda whole: {key: whole[key] for key in whole if "dtype" not in key})
    verification = sea_export.save(spectral_edit(MLP_TARGETS), base, tmp_path / "out", format=form).verification
    assert verification is not None
    assert verification.passed


@pytest.fixture
def few_files() -> Iterator[int]:
    """Lets this process open only some files more than it has open."""
    allowed = len(os.listdir("/dev/fd")) + 30
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, before[1]))
    yield allowed
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.parametrize("other", [60, 35])
def test_more_shards_than_open_files(other: int, few_files: int, tmp_path: Path) -> None:
    """Compared with themselves in as many shards, and in fewer."""
    tensors = {f"layers.{index}.weight": torch.full((2, 3), float(index)) for index in range(60)}
    first = write_sharded(tmp_path / "first", tensors, shards=60)
    second = write_sharded(tmp_path / "second", tensors | {"layers.7.weight": torch.zeros(2, 3)}, shards=other)
    difference = compare_checkpoints(Checkpoint.open(first), Checkpoint.open(second))
    assert list(difference.tensors_changed) == ["layers.7.weight"]
    assert difference.tensors_identical == 59


@pytest.mark.parametrize("form", FORMATS)
def test_a_merge_of_more_shards_than_open_files(
    form: str, few_files: int, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    tensors = load_file(tiny_checkpoint / "model.safetensors")
    base = write_sharded(tmp_path / "base", tensors, shards=len(tensors))
    assert len(tensors) > 30
    for file in tiny_checkpoint.glob("*.json"):
        shutil.copyfile(file, base / file.name)
    sea_export.save(spectral_edit(MLP_TARGETS), base, tmp_path / "out", format=form, verify=False)
    assert (tmp_path / "out" / "sea_export.json").is_file()


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o027, 0o640)])
def test_files_can_be_read_by_whom_the_mask_allows(mask: int, mode: int, tiny_checkpoint: Path, tmp_path: Path) -> None:
    before = os.umask(mask)
    try:
        edit = spectral_edit(MLP_TARGETS)
        edit.save(tmp_path / "edit")
        base = tmp_path / "base"
        weights = shutil.ignore_patterns("*.safetensors")
        shutil.copytree(tiny_checkpoint, base, ignore=weights, copy_function=shutil.copyfile)
        torch.save(tiny_model("llama").state_dict(), base / "pytorch_model.bin")
        for form in ("merged", "custom-code"):
            sea_export.save(edit, base, tmp_path / form, format=form, verify=False)
        sea_export.save(edit, base, tmp_path / "adapter", format="adapter", verify=False)
    finally:
        os.umask(before)
    files = [file for made in ("edit", *FORMATS) for file in (tmp_path / made).rglob("*") if file.is_file()]
    assert len(files) > 20
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {mode}, files
