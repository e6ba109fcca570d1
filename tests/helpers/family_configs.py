"""A tiny config of every family that transformers knows, made by shrinking the family's defaults."""

from __future__ import annotations

from typing import Any

from transformers import CONFIG_MAPPING, PretrainedConfig

VOCABULARY = 64

# What the numbers of a config are called, and what they become.
_SIZES = {
    32: ("hidden_size", "n_embd", "d_model", "embedding_size", "emb_dim", "embedding_dim", "word_embed_proj_dim"),
    48: (
        "intermediate_size",
        "ffn_dim",
        "n_inner",
        "ffn_hidden_size",
        "dff",
        "dim_ff",
        "d_inner",
        "intermediate_size_mlp",
        "dense_intermediate_size",
        "mamba_d_ssm",
    ),
    24: (
        "moe_intermediate_size",
        "shared_expert_intermediate_size",
        "shared_experts_intermediate_size",
        "shared_intermediate_size",
        "expert_ffn_hidden_size",
        "moe_shared_expert_intermediate_size",
    ),
    4: (
        "num_hidden_layers",
        "n_layer",
        "n_layers",
        "num_layers",
        "num_attention_heads",
        "n_head",
        "n_heads",
        "num_heads",
        "attention_heads",
        "swa_num_attention_heads",
        "linear_num_value_heads",
        "linear_num_heads",
        "num_experts",
        "n_routed_experts",
        "num_local_experts",
        "moe_num_experts",
        "index_n_heads",
        "hidden_size_per_layer_input",
    ),
    2: (
        "num_key_value_heads",
        "num_kv_heads",
        "swa_num_key_value_heads",
        "linear_num_key_heads",
        "num_experts_per_tok",
        "num_experts_per_token",
        "moe_k",
        "moe_topk",
        "index_topk",
    ),
    8: (
        "head_dim",
        "swa_head_dim",
        "v_head_dim",
        "q_lora_rank",
        "kv_lora_rank",
        "qk_nope_head_dim",
        "linear_key_head_dim",
        "linear_value_head_dim",
        "linear_head_dim",
        "index_head_dim",
        "query_pre_attn_scalar",
        "mamba_d_state",
        "state_size",
        "ssm_state_size",
        "kv_channels",
        "chunk_size",
        "mamba_chunk_size",
    ),
    VOCABULARY: (
        "vocab_size",
        "max_position_embeddings",
        "n_positions",
        "n_ctx",
        "vocab_size_per_layer_input",
        "max_seq_len",
    ),
}
_SHRUNK = {name: size for size, names in _SIZES.items() for name in names} | {
    "qk_rope_head_dim": 8,
    "embed_dim": 32,
    "depth": 2,
    "hidden_size_global": 32,
    "rotary_dim": 4,
    "n_group": 1,
    "topk_group": 1,
    "num_expert_group": 1,
    "sliding_window": 16,
    "sliding_window_size": 16,
    "window_size": 16,
    "first_k_dense_replace": 1,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}

# What some families need besides.
_SPECIAL: dict[str, dict[str, Any]] = {
    "axk2": {"gated_norm_rank": 4},
    "bailing_hybrid": {"layer_group_size": 2},
    "bamba": {"mamba_n_heads": 8, "attn_layer_indices": [1, 3]},
    "blt": {"encoder_hash_byte_group_vocab": 64},
    "cohere_compass_text": {
        "rope_parameters": {
            kind: {"rope_type": "default", "rope_theta": 10000.0} for kind in ("full_attention", "sliding_attention")
        }
    },
    "dbrx": {
        "attn_config": {"rope_theta": 10000.0, "kv_n_heads": 2, "clip_qkv": 8.0},
        "ffn_config": {"hidden_size": 32, "ffn_hidden_size": 24, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "dots3_note_vision_encoder": {"mlp_layer_types": ["dense"] * 4, "adapter_in_dim": 32, "adapter_out_dim": 32},
    "dots3_note_audio_encoder": {"adapter_input_size": 32, "adapter_out_dim": 32},
    "dots3_note_text": {
        **{f"swa_{name}_heads": 4 for name in ("num_attention", "num_key_value")},
        **{
            f"swa_{name}": 8
            for name in ("q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "v_head_dim", "qk_rope_head_dim")
        },
        "swa_head_dim": 16,
    },
    "dory": {"n_input_layers": 1, "n_recurrent_layers": 2, "n_output_layers": 1},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "falcon_h1": {"mamba_n_heads": 8},
    "gemma3n_text": {"num_kv_shared_layers": 0},
    "gemma4_assistant": {"hidden_size_per_layer_input": 0},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "granitemoehybrid": {
        "mamba_n_heads": 8,
        "layer_types": ["linear_attention", "full_attention", "linear_attention", "full_attention"],
    },
    "hunyuan_v1_dense": {"head_dim": 8},
    "hunyuan_v1_moe": {"head_dim": 8, "num_experts": 4, "moe_topk": 2},
    "inkling2_loop_text": {
        "loop_layer_index_start": 1,
        "loop_layer_index_end": 3,
        "n_layers_per_attn_res_block": 1,
        "unpadded_vocab_size": 60,
    },
    "inkling2_text": {"n_layers_per_attn_res_block": 2, "unpadded_vocab_size": 60},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "kimi_linear": {"layer_types": ["linear_attention", "full_attention"] * 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "mamba2": {"num_heads": 8},
    "ministral": {"head_dim": 8},
    "nemotron": {"num_key_value_heads": 2},
    "nemotron_h": {
        "layers_block_type": ["linear_attention", "moe", "full_attention", "mlp"],
        "mamba_num_heads": 8,
        "mamba_head_dim": 8,
        "n_groups": 2,
    },
    "qwen4_exp_text": {
        "output_gate_type": "sigmoid",
        "indexer_n_heads": 4,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 8,
        "indexer_budget": 4,
        "indexer_compress_ratio": 2,
    },
    "trocr": {"decoder_layers": 4, "decoder_attention_heads": 4, "decoder_ffn_dim": 48},
    "recurrent_gemma": {"num_hidden_layers": 3},
    "qwen2_vl_text": {"rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}},
    "qwen2_5_vl_text": {"rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}},
    "zamba": {"layers_block_type": ["linear_attention", "hybrid"] * 2},
    "zamba2": {"layers_block_type": ["linear_attention", "hybrid"] * 2},
    "zaya": {"num_experts_per_tok": 1},
}


def tiny_family_config(model_type: str) -> PretrainedConfig:
    """A config of a family, with few and narrow layers."""
    return _shrunk(CONFIG_MAPPING[model_type])


def _shrunk(kind: type[PretrainedConfig]) -> PretrainedConfig:
    default = kind()
    values = default.to_dict()
    chosen: dict[str, Any] = {
        name: size
        for name, size in _SHRUNK.items()
        if name in values and isinstance(values[name], (int, list)) and not isinstance(values[name], bool)
    }
    for name in kind.sub_configs:
        if isinstance(getattr(default, name, None), PretrainedConfig):
            chosen[name] = _shrunk(type(getattr(default, name)))
    if "kv_lora_rank" in chosen and "num_key_value_heads" in chosen:  # keys and values of all heads from one latent
        chosen["num_key_value_heads"] = chosen["num_attention_heads"]
    return kind(**{**chosen, **_SPECIAL.get(kind.model_type, {})})
