"""Every decoder-only family that transformers knows: a tiny config of it, and what becomes of an edit of its model.

The configs are made by shrinking the families' defaults. An outcome is measured: the model is made with random weights
and saved, an edit is exported in each format, the export is loaded by transformers, and its logits are compared with
those of the run-time edit. `scripts/families` prints the outcomes of all families as a table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from reference import random_activations
from tiny_edits import layer_edit
from tiny_models import random_model
from torch import Tensor
from transformers import CONFIG_MAPPING, PretrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)

import sea_export
from sea_export.architecture import find_writers, hidden_size, layers_with
from sea_export.edit import COMPONENTS, SpectralEdit, Target
from sea_export.errors import InputError, SeaExportError
from sea_export.loading import auto_classes
from sea_export.options import FORMATS

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


MULTIMODAL = (
    "aya_vision",
    "cohere2_vision",
    "idefics3",
    "internvl",
    "lfm2_vl",
    "llava",
    "llava_next",
    "llava_onevision",
    "mistral3",
    "mllama",
    "paligemma",
    "qwen2_vl",
    "qwen2_5_vl",
    "qwen3_5",
    "qwen3_vl",
    "qwen3_vl_moe",
    "smolvlm",
    "video_llava",
    "vipllava",
)
"""Families of `AutoModelForImageTextToText` of which the multimodal model is tried. Gemma 3's is in both mappings."""
FAMILIES = (*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *(f"{name}, multimodal" for name in MULTIMODAL))
"""What has an outcome: all of `AutoModelForCausalLM`'s mapping, and some of the other."""

EXACT = "exact"
_TOKENS = torch.tensor([[7, 60, 31, 20, 5, 40, 17, 44]])
_TOLERANCE = 1e-5

# What an error says -> the reason in short.
_REASONS = {
    "no layer of": "no MLP and no attention block",
    "is shared with": "layers share their weights",
    "adds what": "its MLP is in two parts",
    "no single list": "no single list of layers",
    "no linear map that writes": "no linear map ends its blocks",
    "says no": "no single language model",
    "does not edit the output": "its experts are followed by a norm within the block",
    "cannot make a language model": "transformers does not load by itself what it saves",
    "no place for the constants of biases": "PEFT holds no biases of experts",
    "all experts in one matrix": "PEFT cannot adapt experts in one matrix",
    "does not find the place of": "PEFT renames its tensors wrongly",
    "does not offer": "transformers does not export its class",
}


@dataclass(frozen=True)
class Outcome:
    """What becomes of an edit of all MLPs and attention blocks of a family's model."""

    left_out: str | None
    """Why the family is not tried: it is no decoder, or its model cannot be made or run here."""
    formats: tuple[str, ...] = ()
    """For `merged`, `adapter` and `custom-code`: `exact`, or why it is refused."""


def outcome(family: str, directory: Path) -> Outcome:
    """Measures the outcome of a family.

    Args:
        family: one of `FAMILIES`.
        directory: an empty directory to write in.

    Raises:
        AssertionError: an export is not the run-time edit, or the edit does nothing.
    """
    model_type = family.removesuffix(", multimodal")
    if model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        return Outcome("a masked language model")
    try:
        config = tiny_family_config(model_type)
        if config.is_encoder_decoder:
            return Outcome("an encoder-decoder")
        if family != model_type:
            config.architectures = [MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES[model_type]]
        model = random_model(config)
        base = _logits(model)
    except (ImportError, StrictDataclassError, ValueError) as error:
        return Outcome(f"not made: {_line(error)}")
    model.save_pretrained(directory / "base")
    try:
        edit = _edit(model)
    except InputError as error:
        return Outcome(None, (_reason(error),) * len(FORMATS))
    with edit.apply(model):
        expected = _logits(model)
    assert _distance(expected, base) > 1e-3, "the edit must do something for the test to mean anything"

    def rounding() -> float:
        return _rounding(model, edit, expected)

    return Outcome(None, tuple(_export(edit, directory, format, config, expected, rounding) for format in FORMATS))


def _edit(model: PreTrainedModel) -> SpectralEdit:
    """An edit of all MLPs and, where there are any that can be edited, all attention blocks."""
    targets = [Target(layer, component) for component in COMPONENTS for layer in layers_with(model, component)]
    find_writers(model, targets)
    size = hidden_size(model.config)
    return SpectralEdit(
        {
            target: (layer_edit(random_activations(60, size, seed=seed), "linear"),)
            for seed, target in enumerate(targets)
        }
    )


def _export(
    edit: SpectralEdit,
    directory: Path,
    format: str,
    config: PretrainedConfig,
    expected: Tensor,
    rounding: Callable[[], float],
) -> str:
    output = directory / format
    try:
        sea_export.save(edit, directory / "base", output, format=format, verify=False)
    except (InputError, SeaExportError) as error:
        assert not output.exists()
        return _reason(error)
    kind = auto_classes(config)[0]
    loaded = kind.from_pretrained(output, trust_remote_code=format == "custom-code").eval()
    error = _distance(_logits(loaded), expected)
    # Some random models, which loop over their layers, make more of a rounding than that.
    assert error < _TOLERANCE or error < 3 * rounding(), f"{format}: relative error {error:.1e}"
    return EXACT


def _rounding(model: PreTrainedModel, edit: SpectralEdit, expected: Tensor) -> float:
    """What a model makes of one rounding of its weights to float32."""
    generator = torch.Generator().manual_seed(0)
    kept = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1 + torch.finfo(torch.float32).eps * torch.randn(parameter.shape, generator=generator))
        with edit.apply(model):
            rounded = _logits(model)
        for name, parameter in model.named_parameters():
            parameter.copy_(kept[name])
    return _distance(rounded, expected)


@torch.inference_mode()
def _logits(model: PreTrainedModel) -> Tensor:
    return model(input_ids=_TOKENS, use_cache=False).logits


def _distance(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).abs().max() / expected.abs().max())


def _reason(error: Exception) -> str:
    for text, reason in _REASONS.items():
        if text in str(error):
            return f"refused: {reason}"
    raise AssertionError(f"an error that is no reason: {error}") from error


def _line(error: Exception) -> str:
    """What an error says, in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if isinstance(error, StrictDataclassError) else lines[0].partition(". ")[0].removesuffix(".")


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


def table(outcomes: Mapping[str, Outcome]) -> str:
    """Outcomes as a Markdown table: families of which all formats are exact in one row, then the others."""
    tried = {family: found for family, found in outcomes.items() if found.formats}
    exact = sorted(family for family, found in tried.items() if set(found.formats) == {EXACT})
    rows = [f"| {', '.join(exact)} | {' | '.join([EXACT] * len(FORMATS))} |"]
    rows += [
        f"| {family} | {' | '.join(found.formats)} |" for family, found in sorted(tried.items()) if family not in exact
    ]
    left_out: dict[str, list[str]] = {}
    for family, found in sorted(outcomes.items()):
        if found.left_out is not None:
            left_out.setdefault(found.left_out, []).append(family)
    head = [f"| family | {' | '.join(FORMATS)} |", "|---" * (1 + len(FORMATS)) + "|"]
    tail = ["", *(f"- {', '.join(families)}: {reason}." for reason, families in sorted(left_out.items()))]
    return "\n".join([*head, *rows, *tail])
