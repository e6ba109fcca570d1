"""Small adapters as PEFT writes them."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

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
    adapted = _with_random_factors(get_peft_model(copy.deepcopy(tiny_model("llama")), config), 3, 0.2)
    adapted.peft_config["default"].base_model_name_or_path = "org/tiny"  # PEFT puts the name of the model there
    adapted.save_pretrained(directory, save_embedding_layers=False)
    return directory


def random_adapter(
    model: PreTrainedModel, directory: Path, *, seed: int = 3, scale: float = 0.2, **entries: Any
) -> PeftModel:
    """An adapter with random factors, as PEFT writes it.

    Args:
        model: its base, which stays as it is.
        directory: where it is written.
        seed: other seeds give other factors.
        scale: the standard deviation of their numbers.
        entries: those of the config.

    Returns:
        A copy of the model with the adapter on it, as PEFT runs it.
    """
    config = LoraConfig(task_type="CAUSAL_LM", **entries)
    adapted = _with_random_factors(get_peft_model(copy.deepcopy(model), config), seed, scale)
    adapted.save_pretrained(directory)
    return adapted.eval()


def _with_random_factors(adapted: PeftModel, seed: int, scale: float) -> PeftModel:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_magnitude_vector" in name:
                parameter.mul_(0.7 + 0.6 * torch.rand(parameter.shape, generator=generator))
            elif "lora_" in name:
                parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
    return adapted


def change_config(directory: Path, **entries: Any) -> None:
    """Changes entries of the config of an adapter."""
    file = directory / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **entries}))


def change_tensors(directory: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    """Changes the tensors of an adapter by name, in place."""
    file = directory / "adapter_model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)
