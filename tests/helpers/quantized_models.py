"""Tiny models in the quantized storages that transformers reads: FP8 with factors of blocks, and MXFP4."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import torch
from safetensors.torch import load_file, save_file
from transformers import GptOssConfig, LlamaConfig, PreTrainedTokenizerFast, Qwen3MoeConfig
from transformers.integrations.finegrained_fp8 import Fp8Quantize

from tests.helpers.hostile_checkpoints import change_json
from tests.helpers.tiny_models import random_model

HIDDEN = 64
_SMALL = {
    "vocab_size": 320,
    "hidden_size": HIDDEN,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64, "head_dim": 32}
FP8_SCALES = ("float32", "bfloat16", "power of two", "byte", "one")
_LLAMA = LlamaConfig(**_SMALL, intermediate_size=128)
_MIXTURE = Qwen3MoeConfig(**_SMALL, **_EXPERTS, intermediate_size=128)
_GPT_OSS = GptOssConfig(**_SMALL, intermediate_size=96, head_dim=32, num_local_experts=4, num_experts_per_tok=2)


def fp8_base(
    directory: Path, tokenizer: PreTrainedTokenizerFast, scales: str = "float32", *, mixture: bool = False
) -> Path:
    """A Llama, or a mixture of experts, whose linear maps are stored in FP8 as transformers stores them.

    The factors of blocks of 32 × 32 are stored in a dtype, as powers of two, or as bytes with their exponents; or there
    is one factor for each weight.
    """
    random_model(_MIXTURE if mixture else _LLAMA).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    block = None if scales == "one" else [32, 32]
    rounded = "ue8m0" if scales in ("power of two", "byte") else "float"
    settings = SimpleNamespace(weight_block_size=block, scale_fmt=rounded)
    quantize = Fp8Quantize(SimpleNamespace(quantization_config=settings))
    stored: dict[str, torch.Tensor] = {}
    for name, tensor in load_file(directory / "model.safetensors").items():
        stored |= quantize.convert({name: tensor}) if name.endswith("proj.weight") else {name: tensor.bfloat16()}
    for name in [name for name in stored if name.endswith("_scale_inv")]:
        if scales == "bfloat16":
            stored[name] = stored[name].bfloat16()
        elif scales == "byte":
            stored[name] = stored[name].view(torch.uint8)
        elif scales == "one":
            stored[name] = stored[name].reshape(())
    save_file(stored, directory / "model.safetensors", metadata={"format": "pt"})
    method = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": block, "scale_fmt": rounded}
    _set_quantization(directory, method)
    return directory


def mxfp4_base(directory: Path, tokenizer: PreTrainedTokenizerFast) -> Path:
    """A gpt-oss model whose experts are stored in MXFP4."""
    random_model(_GPT_OSS).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    stored: dict[str, torch.Tensor] = {}
    for name, tensor in load_file(directory / "model.safetensors").items():
        if name.endswith(("experts.down_proj", "experts.gate_up_proj")):
            stored[f"{name}_blocks"], stored[f"{name}_scales"] = in_mxfp4(tensor.mT)
        else:
            stored[name] = tensor.bfloat16()
    save_file(stored, directory / "model.safetensors", metadata={"format": "pt"})
    _set_quantization(directory, {"quant_method": "mxfp4"})
    return directory


def in_mxfp4(weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(..., columns) weights as blocks (..., columns / 32, 16) and exponents (..., columns / 32), both uint8."""
    blocks = weights.reshape(*weights.shape[:-1], -1, 32).double()
    exponents = (blocks.abs().amax(-1) / 6).log2().ceil()
    values = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6], dtype=torch.float64)
    scaled = blocks / 2 ** exponents[..., None]
    codes = (scaled.abs()[..., None] - values).abs().argmin(-1) + 8 * (scaled < 0)
    packed = codes[..., 0::2] + 16 * codes[..., 1::2]
    return packed.to(torch.uint8), (exponents + 127).to(torch.uint8)


def _set_quantization(directory: Path, settings: dict[str, object]) -> None:
    entries = {"dtype": "bfloat16", "quantization_config": settings}
    change_json(directory / "config.json", lambda whole: whole | entries)
