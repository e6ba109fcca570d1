"""The models that `downstream_gguf` tries: SmolLM2, and tiny ones of other architectures with random weights."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma3TextConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen3MoeConfig,
)

__all__ = ["TINY", "write_tiny"]

_SIZES = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,  # so that the predictions are far from equally likely
    "tie_word_embeddings": True,
}

TINY: dict[str, Callable[..., PretrainedConfig]] = {
    "qwen2": lambda **tokens: Qwen2Config(**_SIZES, **tokens),
    # The size of its heads is the usual one, too: transformers scales attention by that.
    "gemma3": lambda **tokens: Gemma3TextConfig(
        **_SIZES, **tokens, head_dim=256, query_pre_attn_scalar=256, sliding_window=16
    ),
    # The width of an expert is the usual one, because transformers reads it from no GGUF file.
    "qwen3moe": lambda **tokens: Qwen3MoeConfig(**_SIZES, **tokens, head_dim=16, num_experts=4, num_experts_per_tok=2),
}
"""Config of each architecture, by its name in GGUF files: a plain one, one with a norm after each block, and one whose
experts are in one tensor."""


def write_tiny(name: str, base: Path, directory: Path) -> None:
    """Writes the checkpoint of a tiny model with the tokenizer of another.

    Args:
        name: one of `TINY`.
        base: the checkpoint of the other.
        directory: where to write.
    """
    tokenizer = AutoTokenizer.from_pretrained(base)
    torch.manual_seed(0)
    config = TINY[name](
        vocab_size=len(tokenizer),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(directory)
    for file in (*base.glob("tokenizer*"), *base.glob("special_tokens*")):  # as all releases of transformers read them
        shutil.copyfile(file, directory / file.name)
