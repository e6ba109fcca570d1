"""A LoRA of a real model, imported and baked: logits and greedy tokens are those of PEFT."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import sea_export
from sea_export.importing.import_edit import import_edit
from tests.helpers.adapter_files import random_adapter

pytestmark = [pytest.mark.real, pytest.mark.slow]

TOKENS = 16
PROMPTS = ("The weather today is", "Q: How are you?\nA:")


@torch.inference_mode()
def answers(model: torch.nn.Module, directory: Path) -> tuple[torch.Tensor, list[list[int]]]:
    """The logits after each prompt, and what the model continues it with greedily."""
    tokenizer = AutoTokenizer.from_pretrained(directory)
    inputs = [tokenizer(prompt, return_tensors="pt") for prompt in PROMPTS]
    logits = torch.stack([model(**one).logits[0, -1] for one in inputs])
    continued = [model.generate(**one, max_new_tokens=TOKENS, do_sample=False)[0].tolist() for one in inputs]
    return logits, continued


def test_smollm2_answers_as_peft_does(smollm2_directory: Path, tmp_path: Path) -> None:
    base = AutoModelForCausalLM.from_pretrained(smollm2_directory, dtype=torch.float32).eval()
    base.save_pretrained(tmp_path / "base")
    AutoTokenizer.from_pretrained(smollm2_directory).save_pretrained(tmp_path / "base")
    modules = ["q_proj", "v_proj", "gate_proj", "down_proj"]
    adapted = random_adapter(base, tmp_path / "adapter", r=8, lora_alpha=4, target_modules=modules, scale=0.04)
    expected, tokens = answers(adapted, tmp_path / "base")
    unadapted, unadapted_tokens = answers(base, tmp_path / "base")
    del adapted, base
    edit = import_edit(tmp_path / "adapter", tmp_path / "base")
    sea_export.save(edit, tmp_path / "base", tmp_path / "out", verify=False)
    output = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    found, found_tokens = answers(output, tmp_path / "base")
    difference, effect = (float((one - expected).abs().max() / expected.abs().max()) for one in (found, unadapted))
    print(f"export {difference:.1e}, base {effect:.1e}")
    assert difference < 1e-5
    assert effect > 1e-2, "the base itself must fail the same comparison"
    assert found_tokens == tokens
    assert unadapted_tokens != tokens
