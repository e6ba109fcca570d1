"""GGUF files, small and made from nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch


def write_gguf(path: Path, *, without: str = "") -> dict[str, torch.Tensor]:
    """A Llama of one layer with 8-bit weights and a tokenizer of a few words.

    Returns:
        its weights under the names that transformers gives them.
    """
    gguf = pytest.importorskip("gguf")
    tokens = ["<unk>", "<s>", "</s>", "a", "b", "ab", "bb", *(f"t{index}" for index in range(25))]
    size, vocabulary = 32, len(tokens)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("Tiny Title")
    writer.add_context_length(64)
    writer.add_embedding_length(size)
    writer.add_block_count(1)
    writer.add_feed_forward_length(2 * size)
    writer.add_head_count(1)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(50000.0)
    writer.add_vocab_size(vocabulary)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 3] + [1] * (vocabulary - 3))
    writer.add_token_merges(["a b", "b b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template("{{ messages[0]['content'] }}")
    names = {
        "token_embd.weight": ("model.embed_tokens.weight", (vocabulary, size)),
        "output.weight": ("lm_head.weight", (vocabulary, size)),
        "output_norm.weight": ("model.norm.weight", (size,)),
        "blk.0.attn_norm.weight": ("model.layers.0.input_layernorm.weight", (size,)),
        "blk.0.ffn_norm.weight": ("model.layers.0.post_attention_layernorm.weight", (size,)),
        "blk.0.attn_q.weight": ("model.layers.0.self_attn.q_proj.weight", (size, size)),
        "blk.0.attn_k.weight": ("model.layers.0.self_attn.k_proj.weight", (size, size)),
        "blk.0.attn_v.weight": ("model.layers.0.self_attn.v_proj.weight", (size, size)),
        "blk.0.attn_output.weight": ("model.layers.0.self_attn.o_proj.weight", (size, size)),
        "blk.0.ffn_gate.weight": ("model.layers.0.mlp.gate_proj.weight", (2 * size, size)),
        "blk.0.ffn_up.weight": ("model.layers.0.mlp.up_proj.weight", (2 * size, size)),
        "blk.0.ffn_down.weight": ("model.layers.0.mlp.down_proj.weight", (size, 2 * size)),
    }
    random = np.random.default_rng(0)
    weights = {}
    for stored, (name, shape) in names.items():
        values = random.standard_normal(shape).astype(np.float32)
        kind = gguf.GGMLQuantizationType.F32 if len(shape) == 1 else gguf.GGMLQuantizationType.Q8_0
        packed = gguf.quants.quantize(values, kind)
        weights[name] = torch.from_numpy(gguf.quants.dequantize(packed, kind).copy())
        if stored != without:
            writer.add_tensor(stored, packed, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return weights
