"""Passes that start at a later layer give what whole passes give, in every way to share prefixes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from sea_export.capture.batching import PromptedCompletions
from sea_export.capture.upper_layers import upper_layers
from sea_export.evaluation.scoring import CompletionScorer, completion_log_likelihoods, predicting_items
from sea_export.model.architecture import decoder_layers
from sea_export.model.targets import Target
from tests.helpers.families import tiny_family_config
from tests.helpers.random_demonstrations import random_demonstrations
from tests.helpers.tiny_edits import spectral_edit
from tests.helpers.tiny_models import hook_count, random_model, tiny_model

# Caches; caches with sliding windows; recurrent states, so that sequences are computed whole.
MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": lambda: tiny_model("llama"),
    "gemma2": lambda: tiny_model("gemma2"),
    "gemma3_text": lambda: random_model(tiny_family_config("gemma3_text")),
    "gpt2": lambda: tiny_model("gpt2"),
    "jamba": lambda: random_model(tiny_family_config("jamba")),
}


def items_below(vocabulary: int) -> list[PromptedCompletions]:
    def within(tokens: tuple[int, ...]) -> list[int]:
        return [token % vocabulary for token in tokens]

    return [
        PromptedCompletions(within(one.prompt), (within(one.positive), within(one.negative)))
        for one in random_demonstrations(7, shared=20)
    ]


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return MODELS[request.param]()


@pytest.mark.parametrize("kept", ["in memory", "in files"])
def test_edits_and_the_base_are_scored_as_by_the_plain_scorer(
    kept: str, model: PreTrainedModel, tmp_path: Path
) -> None:
    items = items_below(60)
    hooks, layers = hook_count(model), len(decoder_layers(model)[1])
    shifted = predicting_items(items)
    directory = tmp_path if kept == "in files" else None
    passes = upper_layers(model, shifted, {1, 2, layers}, batch_tokens=64, directory=directory)
    assert passes.starts == (1, 2, layers)

    def scores(first: int) -> torch.Tensor:
        scorer = CompletionScorer(items)
        passes.run(scorer, first)
        return torch.tensor(scorer.log_likelihoods())

    base = torch.tensor(completion_log_likelihoods(model, items, batch_tokens=64))
    torch.testing.assert_close(scores(layers), base, rtol=1e-5, atol=1e-5)
    size = model.config.hidden_size
    for first in (2, 3, 1):
        with spectral_edit([Target(first, "mlp"), Target(3, "mlp")], size=size).apply(model):
            plain = torch.tensor(completion_log_likelihoods(model, items, batch_tokens=64))
            fast = scores(first)
        torch.testing.assert_close(fast, plain, rtol=1e-5, atol=1e-5)
        assert (plain - base).abs().max() > 1e-2, "the edit changes something"
    assert hook_count(model) == hooks
    assert not any("forward" in layer.__dict__ for layer in decoder_layers(model)[1])


def test_an_edit_below_the_kept_layers_runs_all_layers() -> None:
    model, items = tiny_model("llama"), items_below(300)
    passes = upper_layers(model, predicting_items(items), {2}, batch_tokens=64)
    with spectral_edit([Target(0, "mlp")]).apply(model):
        scorer = CompletionScorer(items)
        passes.run(scorer, 0)
        plain = completion_log_likelihoods(model, items, batch_tokens=64)
    torch.testing.assert_close(torch.tensor(scorer.log_likelihoods()), torch.tensor(plain))


def test_lower_layers_are_not_computed() -> None:
    model, items = tiny_model("llama"), items_below(300)
    passes = upper_layers(model, predicting_items(items), {2}, batch_tokens=64)
    ran: list[int] = []
    layers = decoder_layers(model)[1]
    handles = [
        layer.mlp.register_forward_hook(lambda module, inputs, output, index=index: ran.append(index))
        for index, layer in enumerate(layers)
    ]
    passes.run(CompletionScorer(items), 3)
    for handle in handles:
        handle.remove()
    assert set(ran) == {2, 3}


def test_nothing_is_kept_where_layers_read_more_of_earlier_ones() -> None:
    """Here the last layers use keys and values of an earlier one."""
    model = random_model(tiny_family_config("gemma3n_text"))
    items = items_below(60)
    passes = upper_layers(model, predicting_items(items), {3}, batch_tokens=64)
    scorer = CompletionScorer(items)
    passes.run(scorer, 3)
    plain = completion_log_likelihoods(model, items, batch_tokens=64)
    torch.testing.assert_close(torch.tensor(scorer.log_likelihoods()), torch.tensor(plain), rtol=1e-5, atol=1e-5)
    assert passes.starts == ()
