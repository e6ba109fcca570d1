"""What tests of custom-code exports share: loading one, and what models say."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

PROMPT = [7, 60, 31, 200, 5, 90, 17, 44]
LINEAR = {"center": "linear", "normalization": "calibrated"}
TANH = {"feature_function": "tanh"}


def load(directory: Path, kind: type = AutoModelForCausalLM, **options: object) -> PreTrainedModel:
    """The model of an export, loaded with its code and with no tensor missing or left over."""
    model, report = kind.from_pretrained(directory, trust_remote_code=True, output_loading_info=True, **options)
    assert not report["missing_keys"]
    if kind is AutoModelForCausalLM:
        assert not report["unexpected_keys"]
    return model.eval()


@torch.inference_mode()
def logits(model: PreTrainedModel, tokens: list[int] = PROMPT) -> torch.Tensor:
    return model(torch.tensor([tokens])).logits


@torch.inference_mode()
def hidden_states(model: PreTrainedModel) -> torch.Tensor:
    return model(torch.tensor([PROMPT])).last_hidden_state


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return float((actual - expected).abs().max() / expected.abs().max())
