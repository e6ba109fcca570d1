"""Divergence, perplexity and agreement against their definitions."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from sea_export.demonstrations.neutral_text import load_texts
from sea_export.errors import InputError
from sea_export.evaluation.damage import DIVERGENCE, measure_damage, predict_texts
from tests.helpers.messages import naming
from tests.helpers.tiny_models import BEGIN, random_model, tiny_config

TEXTS = [
    "The capital of France is not known to anybody.",
    "Birds boil.",
    "Q: Is the sea made of rock? " * 6,
    "A poet wrote the play at the level of the sea, and every bird knows it.",
]


@pytest.fixture(scope="module")
def other(llama: PreTrainedModel) -> PreTrainedModel:
    """The same model with other weights in one layer."""
    changed = copy.deepcopy(llama)
    with torch.no_grad():
        changed.model.layers[3].mlp.down_proj.weight.mul_(0.8)
    return changed


def log_probabilities(model: PreTrainedModel, tokens: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor([tokens])).logits[0, :-1].double().log_softmax(-1)


def test_metrics_follow_their_definitions(
    llama: PreTrainedModel, other: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    reference = predict_texts(llama, tokenizer, TEXTS)
    metrics = {metric.name: metric for metric in measure_damage(other, tokenizer, TEXTS, reference).metrics}
    divergences, agreements, losses, base_losses = [], [], [], []
    for text in TEXTS:
        tokens = [BEGIN, *tokenizer(text).input_ids]
        base, edited = log_probabilities(llama, tokens), log_probabilities(other, tokens)
        divergences.append((base.exp() * (base - edited)).sum(-1))
        agreements.append((base.argmax(-1) == edited.argmax(-1)).double())
        losses.append(-edited.gather(1, torch.tensor(tokens[1:])[:, None])[:, 0])
        base_losses.append(-base.gather(1, torch.tensor(tokens[1:])[:, None])[:, 0])
    assert metrics[DIVERGENCE].value == pytest.approx(torch.cat(divergences).mean().item(), rel=1e-3)
    assert metrics["equal likeliest token"].value == pytest.approx(torch.cat(agreements).mean().item())
    assert metrics["perplexity"].value == pytest.approx(torch.cat(losses).mean().exp().item(), rel=1e-4)
    (base_metric,) = reference.measurement.metrics
    assert base_metric.value == pytest.approx(torch.cat(base_losses).mean().exp().item(), rel=1e-4)
    assert metrics[DIVERGENCE].rows[:, 0] == pytest.approx([one.sum().item() for one in divergences], abs=1e-3)


def test_a_model_is_no_distance_from_itself(llama: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    metrics = measure_damage(llama, tokenizer, TEXTS, predict_texts(llama, tokenizer, TEXTS)).metrics
    found = {metric.name: metric.value for metric in metrics}
    assert found[DIVERGENCE] == pytest.approx(0, abs=1e-6)
    assert found["equal likeliest token"] == 1


def test_texts_longer_than_the_context_are_cut(tokenizer: PreTrainedTokenizerFast) -> None:
    """GPT-2 has a table of 256 positions and fails beyond."""
    model = random_model(tiny_config("gpt2"))
    text = "The sea is made of water. " * 60
    reference = predict_texts(model, tokenizer, [text])
    assert len(reference.items[0].completions[0]) == 255
    assert np.isfinite(reference.log_probabilities).all()


def test_models_with_other_tokens_are_refused(
    llama: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, beginning_tokenizer: PreTrainedTokenizerFast
) -> None:
    config = tiny_config("llama")
    config.vocab_size = 330
    with pytest.raises(InputError, match="tokens"):
        measure_damage(random_model(config), tokenizer, TEXTS, predict_texts(llama, tokenizer, TEXTS))
    with pytest.raises(InputError, match="tokens"):
        measure_damage(llama, tokenizer, TEXTS[:2], predict_texts(llama, tokenizer, TEXTS))


def test_reading_passages(tmp_path: Path) -> None:
    builtin = load_texts(None)
    assert len(set(builtin)) == len(builtin) == 40
    assert min(len(text.split()) for text in builtin) > 30
    (tmp_path / "text.txt").write_text("One.\nStill one.\n\n\nTwo.\n", encoding="utf-8")
    assert load_texts(str(tmp_path / "text.txt")) == ("One.\nStill one.", "Two.")
    (tmp_path / "text.jsonl").write_text('{"text": "One."}\n{"text": "Two."}\n', encoding="utf-8")
    assert load_texts(str(tmp_path / "text.jsonl")) == ("One.", "Two.")
    (tmp_path / "bad.jsonl").write_text('{"text": "One."}\n{"words": "Two."}\n', encoding="utf-8")
    with pytest.raises(InputError, match=naming("bad.jsonl, row 2")):
        load_texts(str(tmp_path / "bad.jsonl"))
    with pytest.raises(InputError, match=naming("missing.txt")):
        load_texts(str(tmp_path / "missing.txt"))
