"""Small adapters as PEFT writes them."""

from __future__ import annotations

import copy
from pathlib import Path

from peft import LoraConfig, get_peft_model

from tests.helpers.tiny_models import tiny_model


def write_adapter(directory: Path) -> Path:
    """A LoRA adapter of the tiny `llama`, whose modules differ in rank."""
    modules = [f"model.layers.{layer}.mlp.down_proj" for layer in (1, 3)]
    config = LoraConfig(
        r=2,
        lora_alpha=2,
        target_modules=modules,
        rank_pattern={modules[1]: 3},
        alpha_pattern={modules[1]: 3},
        task_type="CAUSAL_LM",
    )
    adapted = get_peft_model(copy.deepcopy(tiny_model("llama")), config)
    adapted.peft_config["default"].base_model_name_or_path = "org/tiny"  # PEFT puts the name of the model there
    adapted.save_pretrained(directory, save_embedding_layers=False)
    return directory
