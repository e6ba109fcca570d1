"""GGUF files, small and made from nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GPT2Config, PretrainedConfig, PreTrainedModel, Qwen3MoeConfig

from tests.helpers.tiny_models import random_model

_TOKENS = ["<unk>", "<s>", "</s>", "a", "b", "ab", "bb", *(f"t{index}" for index in range(25))]


def write_gguf(
    path: Path,
    *,
    without: str = "",
    layers: int = 1,
    types: Mapping[str, str] = MappingProxyType({}),
    feed_forward: int = 64,
    alignment: int | None = None,
    biases: bool = False,
    split: int = 0,
) -> dict[str, torch.Tensor]:
    """A Llama with 8-bit weights and a tokenizer of a few words.

    Args:
        path: the file to write.
        without: the name of a tensor that is left out.
        layers: the number of layers.
        types: other types than Q8_0, by the last part of the names of tensors, such as `ffn_down`.
        feed_forward: the width of its MLPs.
        alignment: that of its tensors, if it is not the usual one.
        biases: whether its output projections have biases.
        split: the largest number of tensors in a file; 0 for all in one.

    Returns:
        its weights under the names that transformers gives them.
    """
    gguf = pytest.importorskip("gguf")
    size, vocabulary = 32, len(_TOKENS)
    writer = gguf.GGUFWriter(path, "llama", split_max_tensors=split)
    if alignment is not None:
        writer.add_custom_alignment(alignment)
    writer.add_name("Tiny Title")
    writer.add_context_length(64)
    writer.add_embedding_length(size)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(feed_forward)
    writer.add_head_count(1)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(50000.0)
    _add_tokenizer(writer)
    names = {
        "token_embd.weight": ("model.embed_tokens.weight", (vocabulary, size)),
        "output.weight": ("lm_head.weight", (vocabulary, size)),
        "output_norm.weight": ("model.norm.weight", (size,)),
    }
    for layer in range(layers):
        stored, named = f"blk.{layer}", f"model.layers.{layer}"
        names |= {
            f"{stored}.attn_norm.weight": (f"{named}.input_layernorm.weight", (size,)),
            f"{stored}.ffn_norm.weight": (f"{named}.post_attention_layernorm.weight", (size,)),
            f"{stored}.attn_q.weight": (f"{named}.self_attn.q_proj.weight", (size, size)),
            f"{stored}.attn_k.weight": (f"{named}.self_attn.k_proj.weight", (size, size)),
            f"{stored}.attn_v.weight": (f"{named}.self_attn.v_proj.weight", (size, size)),
            f"{stored}.attn_output.weight": (f"{named}.self_attn.o_proj.weight", (size, size)),
            f"{stored}.ffn_gate.weight": (f"{named}.mlp.gate_proj.weight", (feed_forward, size)),
            f"{stored}.ffn_up.weight": (f"{named}.mlp.up_proj.weight", (feed_forward, size)),
            f"{stored}.ffn_down.weight": (f"{named}.mlp.down_proj.weight", (size, feed_forward)),
        }
        if biases:
            names[f"{stored}.ffn_down.bias"] = (f"{named}.mlp.down_proj.bias", (size,))
            names[f"{stored}.attn_output.bias"] = (f"{named}.self_attn.o_proj.bias", (size,))
    random = np.random.default_rng(0)
    weights = {}
    for stored, (name, shape) in names.items():
        values = random.standard_normal(shape).astype(np.float32)
        asked = types.get(stored.split(".")[-2], "Q8_0")
        kind = gguf.GGMLQuantizationType["F32" if len(shape) == 1 else asked]
        packed = random_blocks(shape, asked) if asked.endswith("_K") else gguf.quants.quantize(values, kind)
        weights[name] = torch.from_numpy(gguf.quants.dequantize(packed, kind).copy())
        if stored != without:
            writer.add_tensor(stored, packed, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return weights


def random_blocks(shape: tuple[int, ...], name: str) -> np.ndarray:
    """The bytes (rows, bytes) of a matrix of a type that the gguf package can only read: all random but the scales."""
    gguf = pytest.importorskip("gguf")
    values, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]]
    random = np.random.default_rng(1)
    blocks = random.integers(0, 256, (shape[0] * shape[1] // values, size), dtype=np.uint8)
    scale = np.array([0.004], np.float16).view(np.uint8)
    blocks[:, slice(-2, None) if name == "Q6_K" else slice(0, 2)] = scale
    if name != "Q6_K":
        blocks[:, 2:4] = scale
    return blocks.reshape(shape[0], -1)


def write_gguf_of(path: Path, family: str) -> PreTrainedModel:
    """A model of another family, `gpt2` or `qwen3moe`, with two layers.

    Returns:
        it, with the values of the file.
    """
    gguf = pytest.importorskip("gguf")
    config = _FAMILIES[family]()
    model = random_model(config)
    writer = gguf.GGUFWriter(path, family)
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_block_count(2)
    writer.add_head_count(2)
    if family == "gpt2":
        writer.add_feed_forward_length(128)
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
    else:
        writer.add_feed_forward_length(config.intermediate_size)
        writer.add_head_count_kv(1)
        writer.add_key_length(16)
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
        writer.add_expert_count(config.num_experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
    _add_tokenizer(writer)
    architecture = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == family)
    names = gguf.get_tensor_name_map(architecture, 2)
    for name, tensor in model.state_dict().items():
        values = tensor.numpy()
        if name.endswith("experts.gate_up_proj"):
            layer = name.split(".")[2]
            for part, half in zip(("gate", "up"), np.split(values, 2, axis=1), strict=True):
                writer.add_tensor(f"blk.{layer}.ffn_{part}_exps.weight", np.ascontiguousarray(half))
            continue
        stem, _, ending = name.rpartition(".")
        stored = names.get_name(stem) if ending in ("weight", "bias") else names.get_name(name)
        assert stored is not None, name
        if family == "gpt2" and ".h." in name and values.ndim == 2:
            values = np.ascontiguousarray(values.T)  # its linear maps have their inputs first
        writer.add_tensor(f"{stored}.{ending if ending in ('weight', 'bias') else 'weight'}", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


_FAMILIES: dict[str, Callable[[], PretrainedConfig]] = {
    # Transformers takes the number of positions from no file, so that it is the usual one.
    "gpt2": lambda: GPT2Config(n_embd=32, n_layer=2, n_head=2, n_positions=1024, vocab_size=32),
    # Transformers takes the width of an expert from no file, so that it is the usual one.
    "qwen3moe": lambda: Qwen3MoeConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        num_experts=3,
        num_experts_per_tok=2,
        vocab_size=32,
        max_position_embeddings=64,
        tie_word_embeddings=False,
    ),
}


def _add_tokenizer(writer: Any) -> None:
    writer.add_vocab_size(len(_TOKENS))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(_TOKENS)
    writer.add_token_types([3, 3, 3] + [1] * (len(_TOKENS) - 3))
    writer.add_token_merges(["a b", "b b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template("{{ messages[0]['content'] }}")


def write_control_vector(path: Path, vectors: Mapping[int, torch.Tensor]) -> None:
    """A control vector as llama.cpp and repeng write it: a tensor `direction.N` for each layer.

    Args:
        path: the file to write.
        vectors: (d,) by layer.
    """
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(path, "controlvector")
    writer.add_string("controlvector.model_hint", "llama")
    writer.add_uint32("controlvector.layer_count", len(vectors))
    for layer, vector in vectors.items():
        writer.add_tensor(f"direction.{layer}", vector.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
