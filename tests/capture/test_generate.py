"""Continuations are those of every prompt by itself, and what prompts begin with is computed once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from sea_export.capture.generate import greedy_continuations, sampled_continuations
from tests.helpers.tiny_models import family_parameters, tiny_model

BEGINNING = tuple(range(5, 25))
PROMPTS = [(*BEGINNING, *rest) for rest in ([3], [30, 31, 32, 4, 9], [40, 6], [31, 8, 9])]
NEW_TOKENS = 6


@contextmanager
def computed_tokens(model: PreTrainedModel) -> Iterator[list[int]]:
    """The numbers of tokens of all forward calls while the context is open, padding included."""
    counts: list[int] = []
    embedding: Any = model.get_input_embeddings()
    handle = embedding.register_forward_hook(lambda module, inputs, output: counts.append(inputs[0].numel()))
    try:
        yield counts
    finally:
        handle.remove()


@pytest.mark.parametrize("family", family_parameters())
def test_continuations_are_those_of_each_prompt_alone(family: str) -> None:
    model = tiny_model(family)
    together = greedy_continuations(model, PROMPTS, new_tokens=NEW_TOKENS, past_the_end=True)
    alone = [greedy_continuations(model, [one], new_tokens=NEW_TOKENS, past_the_end=True)[0] for one in PROMPTS]
    assert together == alone
    assert all(len(one) == NEW_TOKENS for one in together)


def test_what_prompts_begin_with_is_computed_once(llama: PreTrainedModel) -> None:
    with computed_tokens(llama) as counts:
        greedy_continuations(llama, PROMPTS, new_tokens=NEW_TOKENS, past_the_end=True)
    longest = max(len(one) - len(BEGINNING) for one in PROMPTS)
    assert sum(counts) == len(BEGINNING) + len(PROMPTS) * (longest + NEW_TOKENS - 1)


@pytest.mark.parametrize("prompts", [PROMPTS[:1], [(5, 6, 3), (5, 6, 4)], [(3, *BEGINNING), (4, *BEGINNING)]])
def test_nothing_is_shared_where_nothing_is_gained(prompts: list[tuple[int, ...]], llama: PreTrainedModel) -> None:
    with computed_tokens(llama) as counts:
        greedy_continuations(llama, prompts, new_tokens=NEW_TOKENS, past_the_end=True)
    assert sum(counts) == len(prompts) * (len(prompts[0]) + NEW_TOKENS - 1)


def test_a_prompt_that_is_the_beginning_of_the_others_keeps_a_token(llama: PreTrainedModel) -> None:
    prompts = [BEGINNING, (*BEGINNING, 30), (*BEGINNING, 31, 32)]
    together = greedy_continuations(llama, prompts, new_tokens=NEW_TOKENS)
    assert together == [greedy_continuations(llama, [one], new_tokens=NEW_TOKENS)[0] for one in prompts]


def test_samples_follow_the_seed(llama: PreTrainedModel) -> None:
    first, again, other = (
        sampled_continuations(llama, PROMPTS, new_tokens=NEW_TOKENS, seed=seed) for seed in (1, 1, 2)
    )
    assert first == again != other
    state = torch.random.get_rng_state()
    sampled_continuations(llama, PROMPTS, new_tokens=2, seed=3)
    assert torch.equal(state, torch.random.get_rng_state())


def test_a_continuation_that_is_watched(llama: PreTrainedModel) -> None:
    """It is told each token, ends where it is not wanted, and is the same one otherwise."""
    (whole,) = greedy_continuations(llama, PROMPTS[:1], new_tokens=NEW_TOKENS)
    seen: list[tuple[int, ...]] = []
    (watched,) = greedy_continuations(
        llama, PROMPTS[:1], new_tokens=NEW_TOKENS, goes_on=lambda tokens: seen.append(tuple(tokens)) or True
    )
    assert watched == whole
    assert seen == [whole[:length] for length in range(1, len(seen) + 1)]
    assert len(seen) == NEW_TOKENS
    (ended,) = greedy_continuations(llama, PROMPTS[:1], new_tokens=NEW_TOKENS, goes_on=lambda tokens: len(tokens) < 2)
    assert ended == whole[:2]
