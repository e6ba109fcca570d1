"""`diff` of checkpoints in a quantized storage tells how far the weights are apart that the stored numbers mean."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from sea_export.model.checkpoint import Checkpoint
from sea_export.model.diff import compare_checkpoints
from tests.helpers.quantized_models import fp8_base, mxfp4_base

WEIGHTS = "model.safetensors"


@pytest.mark.parametrize("storage", ["float32", "byte", "mxfp4"])
def test_the_difference_is_that_of_the_weights(
    storage: str, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    make = mxfp4_base if storage == "mxfp4" else lambda *given: fp8_base(*given, storage)
    make(a, tokenizer)
    shutil.copytree(a, b)
    tensors = load_file(b / WEIGHTS)
    values = next(name for name in tensors if "layers.1." in name and "down_proj" in name and "bias" not in name)
    values = values.replace("_scale_inv", "").replace("_scales", "_blocks")
    scales = values.replace("_blocks", "_scales") if storage == "mxfp4" else f"{values}_scale_inv"
    tensors[values].view(torch.uint8).bitwise_xor_(0x88 if storage == "mxfp4" else 0x80)  # the signs of all numbers
    tensors[scales] = tensors[scales] + 1 if tensors[scales].dtype == torch.uint8 else tensors[scales] * 2
    save_file(tensors, b / WEIGHTS, metadata={"format": "pt"})
    loaded = [AutoModelForCausalLM.from_pretrained(one, dtype=torch.float32) for one in (a, b)]
    name = values.removesuffix("_blocks")
    before, after = (model.get_parameter(name).detach() for model in loaded)
    changed = compare_checkpoints(Checkpoint.open(a), Checkpoint.open(b)).tensors_changed
    assert changed.keys() == {values, scales}
    assert changed[values].maximum == pytest.approx(float((after - before).abs().max()))
    assert changed[values].relative == pytest.approx(float((after - before).norm() / before.norm()))
