"""Divergence, perplexity and agreement against their definitions."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from sea_export.capture.batching import PromptedCompletions
from sea_export.capture.own_answers import own_answers
from sea_export.demonstrations.neutral_text import load_texts
from sea_export.errors import InputError, SeaExportError
from sea_export.evaluation.damage import measure_damage, predict_texts
from sea_export.evaluation.divergence import DIVERGENCE, RepeatedDivergence, divergence_of
from sea_export.evaluation.kept_predictions import KeptPredictions
from sea_export.evaluation.unrelated_text import UnrelatedText, unrelated_text
from tests.helpers.messages import naming
from tests.helpers.tiny_edits import MLP_TARGETS, spectral_edit
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


QUESTIONS = ["Write a note to a friend.", "Count to ten.", "Why does it rain?"]


def log_probabilities(model: PreTrainedModel, tokens: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor([tokens])).logits[0, :-1].double().log_softmax(-1)


def test_metrics_follow_their_definitions(
    llama: PreTrainedModel, other: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    reference = predict_texts(llama, tokenizer, TEXTS, QUESTIONS)
    metrics = {metric.name: metric for metric in measure_damage(other, tokenizer, TEXTS, reference).metrics}
    divergence_of_prose, losses, base_losses = [], [], []
    for text in TEXTS:
        tokens = [BEGIN, *tokenizer(text).input_ids]
        base, edited = log_probabilities(llama, tokens), log_probabilities(other, tokens)
        divergence_of_prose.append((base.exp() * (base - edited)).sum(-1))
        losses.append(-edited.gather(1, torch.tensor(tokens[1:])[:, None])[:, 0])
        base_losses.append(-base.gather(1, torch.tensor(tokens[1:])[:, None])[:, 0])
    answers = [divergence_of_answer(llama, other, item) for item in reference.text.answers]
    prose, own = torch.cat(divergence_of_prose).mean().item(), torch.cat(answers).mean().item()
    assert metrics["KL on prose"].value == pytest.approx(prose, rel=1e-3)
    assert metrics["KL on own answers"].value == pytest.approx(own, rel=1e-3)
    assert metrics[DIVERGENCE].value == pytest.approx(max(prose, own), rel=1e-3)
    assert metrics["perplexity"].value == pytest.approx(torch.cat(losses).mean().exp().item(), rel=1e-4)
    (base_metric,) = reference.measurement.metrics
    assert base_metric.value == pytest.approx(torch.cat(base_losses).mean().exp().item(), rel=1e-4)
    rows = [[one.sum().item() for one in kind] for kind in (divergence_of_prose, answers)]
    assert metrics["KL on prose"].rows[:, 0] == pytest.approx([*rows[0], *[0] * len(answers)], abs=1e-3)
    assert metrics["KL on own answers"].rows[:, 0] == pytest.approx([*[0] * len(TEXTS), *rows[1]], abs=1e-3)


def divergence_of_answer(base: PreTrainedModel, other: PreTrainedModel, item: PromptedCompletions) -> torch.Tensor:
    tokens, start = [*item.prompt, *item.completions[0]], len(item.prompt) - 1
    one, two = (log_probabilities(model, tokens)[start:] for model in (base, other))
    return (one.exp() * (one - two)).sum(-1)


@pytest.mark.parametrize("kept", ["in memory", "in files"])
def test_several_edits_are_measured_as_each_by_itself(
    kept: str, llama: PreTrainedModel, other: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    edits = [spectral_edit(targets) for targets in (MLP_TARGETS[:1], MLP_TARGETS)]
    text = unrelated_text(llama, tokenizer, TEXTS, QUESTIONS)
    repeated = RepeatedDivergence(llama, text, {1}, directory=tmp_path if kept == "in files" else None)
    found = [repeated.of(edit) for edit in edits]
    reference = predict_texts(llama, tokenizer, TEXTS, QUESTIONS)
    for edit, divergence in zip(edits, found, strict=True):
        with edit.apply(llama):
            measured = measure_damage(llama, tokenizer, TEXTS, reference)
        assert divergence.largest.value == pytest.approx(measured.metric(DIVERGENCE).value, rel=1e-4)
        assert divergence.agreement.value == measured.metric("top-1 agreement").value
    assert found[0].largest.value != found[1].largest.value
    assert not any(tmp_path.iterdir()), "the files have no name"


def test_a_divergence_that_is_surely_beyond_a_limit_is_not_measured_to_the_end(
    llama: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Some of the texts are enough then; near the limit all of them count, and few are never enough."""
    text = unrelated_text(llama, tokenizer, load_texts(None)[:20], ())
    repeated, edit = RepeatedDivergence(llama, text, {1}), spectral_edit(MLP_TARGETS)
    whole = repeated.of(edit)
    tried: list[int] = []
    part = repeated.of(edit, tried.append, limit=whole.largest.value / 10)
    assert 5 <= sum(tried) == (part.agreement.rows[:, 1] > 0).sum() < 20
    assert part.is_beyond(whole.largest.value / 10)
    assert part.largest.value == pytest.approx(whole.largest.value, rel=0.5)
    for limit in (whole.largest.value, 2 * whole.largest.value):
        assert repeated.of(edit, limit=limit).largest.value == whole.largest.value
    few = RepeatedDivergence(llama, UnrelatedText(text.prose[:4], ()), {1})
    assert not few.of(edit).is_beyond(0)


def test_a_divergence_that_is_no_number_is_beyond_every_limit() -> None:
    text = UnrelatedText(tuple(PromptedCompletions([1], [[2, 3]]) for _ in range(6)), ())
    sums = dict.fromkeys(range(6), (0.01, 2.0))
    assert not divergence_of(text, sums).is_beyond(1.0)
    for wrong in (math.nan, math.inf):
        assert divergence_of(text, {**sums, 3: (wrong, 2.0)}).is_beyond(1.0)


def test_predictions_for_which_there_is_no_room_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SeaExportError, match=naming(tmp_path, "GB")):
        KeptPredictions([10**6] * 1000, 10**6, tmp_path)


def test_own_answers_are_seeded_samples(llama: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    one, same, other = (own_answers(llama, tokenizer, QUESTIONS, seed=seed) for seed in (1, 1, 2))
    assert one == same
    assert one != other
    assert all(0 < len(item.completions[0]) <= 32 for item in one)
    ends = {llama.generation_config.eos_token_id}
    assert all(ends.isdisjoint(item.completions[0][:-1]) for item in one)


def test_a_model_is_no_distance_from_itself(llama: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    metrics = measure_damage(llama, tokenizer, TEXTS, predict_texts(llama, tokenizer, TEXTS, QUESTIONS)).metrics
    found = {metric.name: metric.value for metric in metrics}
    assert found[DIVERGENCE] == pytest.approx(0, abs=1e-6)
    assert found["top-1 agreement"] == 1


def test_texts_longer_than_the_context_are_cut(tokenizer: PreTrainedTokenizerFast) -> None:
    """GPT-2 has a table of 256 positions and fails beyond."""
    model = random_model(tiny_config("gpt2"))
    text = "The sea is made of water. " * 60
    reference = predict_texts(model, tokenizer, [text], [text, "Why?"])
    assert len(reference.text.prose[0].completions[0]) == 255
    assert len(reference.text.answers) == 1, "a question that leaves no room for an answer is left out"
    assert all(reference.kept.of(index).isfinite().all() for index in range(2))


def test_models_with_other_tokens_are_refused(
    llama: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, beginning_tokenizer: PreTrainedTokenizerFast
) -> None:
    config = tiny_config("llama")
    config.vocab_size = 330
    with pytest.raises(InputError, match="tokens"):
        measure_damage(random_model(config), tokenizer, TEXTS, predict_texts(llama, tokenizer, TEXTS, ()))
    with pytest.raises(InputError, match="tokens"):
        measure_damage(llama, tokenizer, TEXTS[:2], predict_texts(llama, tokenizer, TEXTS, ()))


def test_reading_passages(tmp_path: Path) -> None:
    builtin = load_texts(None)
    assert len(set(builtin)) == len(builtin) == 84
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
