"""The architectures on whose models llama.cpp can put an edit, and their names there.

For each of them the sources of llama.cpp were read, as llama-cpp-python 0.3.36 brings them:

- `src/models/NAME.cpp` multiplies by `ffn_down`, `ffn_down_exps` and `ffn_down_shexp` in `build_ffn` and
  `build_moe_ffn`, and by `attn_output` in `build_attn`, which apply a LoRA to the product;
- it adds the control vector of a layer (`build_cvec`) to the sum of the residual stream and what the layer adds to it;
- the converter of transformers' models (`conversion/`) changes neither of these weights, but for transposing those of
  GPT-2 and stacking those of experts.
"""

from __future__ import annotations

from sea_export.errors import InputError
from sea_export.model.base import Base
from sea_export.model.gguf_parts import GgufPart

__all__ = ["llama_cpp_architecture"]

_NAMES = {
    "bloom": "bloom",
    "cohere": "command-r",
    "cohere2": "cohere2",
    "falcon": "falcon",
    "gemma": "gemma",
    "gemma2": "gemma2",
    "gemma3_text": "gemma3",
    "gpt2": "gpt2",
    "gpt_neox": "gptneox",
    "granite": "granite",
    "llama": "llama",
    "mistral": "llama",
    "mixtral": "llama",
    "mpt": "mpt",
    "nemotron": "nemotron",
    "olmo": "olmo",
    "olmo2": "olmo2",
    "olmoe": "olmoe",
    "phi": "phi2",
    "phi3": "phi3",
    "qwen2": "qwen2",
    "qwen2_moe": "qwen2moe",
    "qwen3": "qwen3",
    "qwen3_moe": "qwen3moe",
    "smollm3": "smollm3",
    "stablelm": "stablelm",
    "starcoder2": "starcoder2",
}
"""`model_type` in transformers -> the architecture in llama.cpp."""


def llama_cpp_architecture(base: Base, parts: tuple[GgufPart, ...]) -> str:
    """What llama.cpp calls the architecture of a base.

    Args:
        base: the base.
        parts: its GGUF files; empty for a base in another form.

    Raises:
        InputError: it is none of those that are known to take a LoRA and a control vector as an edit needs them.
    """
    named = parts[0].header.value("general.architecture") if parts else base.config.model_type
    name = named if parts else _NAMES.get(str(named))
    if not isinstance(name, str) or name not in _NAMES.values():
        raise InputError(
            f"--format: gguf-adapter is not known to be exact in llama.cpp for {base.name} (architecture {named}). "
            f"Choose --format {'gguf' if parts else 'merged'}."
        )
    return name
