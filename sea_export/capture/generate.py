"""Continuations of token sequences, greedy or sampled, in batches. What all prompts begin with is computed once."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from sea_export.capture.batching import PrefixCacheMode, PromptedCompletions, needs_equal_lengths
from sea_export.capture.forward import cache_arguments, filled_cache, input_device, selected_rows
from sea_export.capture.prefix_cache import prefix_cache_mode
from sea_export.errors import InputError

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel

__all__ = ["end_tokens", "greedy_continuations", "sampled_continuations"]

_FEWEST_SHARED = 8
"""Fewer tokens at the beginning of all prompts are computed again for each of them."""


@torch.inference_mode()
def greedy_continuations(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    *,
    new_tokens: int,
    batch_tokens: int = 2048,
    past_the_end: bool = False,
    progress: Callable[[int], None] | None = None,
    goes_on: Callable[[Sequence[int]], bool] | None = None,
) -> list[tuple[int, ...]]:
    """Continuations of prompts in which every token is the likeliest one.

    The model's own generation settings, which may sample or penalise repetition, are not used.

    Args:
        model: a causal language model with its head.
        prompts: token sequences. None of them is empty.
        new_tokens: length of a continuation, in tokens.
        batch_tokens: about how many tokens are processed at a time.
        past_the_end: never choose the end-of-sequence token, so that every continuation has `new_tokens` tokens.
            Otherwise a continuation ends before that token, but has at least one token.
        progress: told the number of prompts that a batch has finished.
        goes_on: for one prompt: given its continuation after each token, it says whether another token is wanted.

    Returns:
        One continuation for each prompt, without the prompt.
    """
    ends = end_tokens(model)
    generated = _generated(
        model,
        prompts,
        batch_tokens,
        progress,
        goes_on,
        max_new_tokens=new_tokens,
        min_new_tokens=new_tokens if past_the_end else None,
        do_sample=False,
        eos_token_id=sorted(ends) or None,
        pad_token_id=min(ends, default=0),
    )
    return [_until_end(tokens, ends) for tokens in generated]


@torch.inference_mode()
def sampled_continuations(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    *,
    new_tokens: int,
    seed: int,
    batch_tokens: int = 2048,
) -> list[tuple[int, ...]]:
    """Continuations of prompts that are drawn from the model's own distribution, at temperature 1.

    Args:
        model: see `greedy_continuations`.
        prompts: see `greedy_continuations`.
        new_tokens: the largest length of a continuation, in tokens.
        seed: of the draws.
        batch_tokens: about how many tokens are processed at a time.

    Returns:
        One continuation for each prompt, without the prompt, up to and with its end-of-sequence token.
    """
    ends = end_tokens(model)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        generated = _generated(
            model,
            prompts,
            batch_tokens,
            None,
            None,
            max_new_tokens=new_tokens,
            do_sample=True,
            top_k=0,
            eos_token_id=sorted(ends) or None,
            pad_token_id=min(ends, default=0),
        )
    return [_through_end(tokens, ends) for tokens in generated]


def end_tokens(model: PreTrainedModel) -> set[int]:
    """The tokens that end a text, as the model's generation settings name them; empty if they name none.

    Raises:
        InputError: they name something else.
    """
    ends = model.generation_config.eos_token_id if model.generation_config is not None else None
    found = ends if isinstance(ends, list) else [] if ends is None else [ends]
    if not all(isinstance(end, int) and end >= 0 for end in found):
        raise InputError(f"generation_config.json: its eos_token_id {ends!r} is no token. Download the model again.")
    return set(found)


def _generated(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    batch_tokens: int,
    progress: Callable[[int], None] | None,
    goes_on: Callable[[Sequence[int]], bool] | None,
    **settings: Any,
) -> list[list[int]]:
    """What `generate` adds to each prompt, padding included."""
    from transformers import GenerationConfig, StoppingCriteriaList

    config = GenerationConfig(**settings)
    device = next(model.parameters()).device
    shared, cache = _shared_beginning(model, prompts, batch_tokens)
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]), reverse=True)
    continuations: dict[int, list[int]] = {}
    while order:
        width = len(prompts[order[0]])
        count = max(1, batch_tokens // (width + settings["max_new_tokens"]))
        batch, order = order[:count], order[count:]
        ids = torch.zeros(len(batch), width, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, index in enumerate(batch):
            start = width - len(prompts[index]) + shared  # padding is between what is shared and the rest
            ids[row, :shared] = torch.tensor(prompts[index][:shared])
            ids[row, start:] = torch.tensor(prompts[index][shared:])
            mask[row, :shared] = mask[row, start:] = 1
        watched = {}
        if goes_on is not None:
            watched["stopping_criteria"] = StoppingCriteriaList([_ends_when_unwanted(width, goes_on)])
        begun = {} if cache is None else cache_arguments(model, selected_rows(cache, [0] * len(batch)), fills=True)
        with _own_settings_replaced(model, config):
            generated = cast("Any", model).generate(
                input_ids=ids.to(device), attention_mask=mask.to(device), **begun, **watched
            )
        for row, index in enumerate(batch):
            continuations[index] = generated[row, width:].tolist()
        if progress is not None:
            progress(len(batch))
    return [continuations[index] for index in range(len(prompts))]


def _ends_when_unwanted(width: int, goes_on: Callable[[Sequence[int]], bool]) -> Callable[..., Tensor]:
    """What `generate` asks after each token whether it ends. The prompt has `width` tokens."""

    def ends(ids: Tensor, scores: object, **_: object) -> Tensor:
        unwanted = not goes_on(ids[0, width:].tolist())
        return torch.full((len(ids),), unwanted, device=ids.device, dtype=torch.bool)

    return ends


def _shared_beginning(model: PreTrainedModel, prompts: Sequence[Sequence[int]], batch_tokens: int) -> tuple[int, Any]:
    """How many tokens all prompts begin with, and the cache of one row with them.

    0 and None if nothing is gained, or if the model would get another result from such a cache.
    """
    if len(prompts) < 2:
        return 0, None
    in_order = sorted(tuple(prompt) for prompt in prompts)
    # What the first and the last one have in common, all have. Every prompt keeps a token to predict from.
    pairs = zip(in_order[0][:-1], in_order[-1][:-1], strict=False)
    length = len(list(itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)))
    if length < _FEWEST_SHARED:
        return 0, None
    decoder = cast("PreTrainedModel", model.base_model)
    items = [PromptedCompletions(prompt[:length], [prompt[length:]]) for prompt in prompts]
    mode = prefix_cache_mode(decoder, items, batch_tokens=batch_tokens)
    if mode is not PrefixCacheMode.CACHES or needs_equal_lengths(decoder):
        return 0, None
    ids = torch.tensor([list(prompts[0][:length])], device=input_device(decoder))
    return length, filled_cache(cast("Any", decoder)(input_ids=ids, **cache_arguments(decoder, None, fills=True)))


@contextmanager
def _own_settings_replaced(model: PreTrainedModel, settings: GenerationConfig) -> Iterator[None]:
    """Replaces the model's own generation settings, which `generate` would add to those that it is given."""
    own = model.generation_config
    model.generation_config = settings
    try:
        yield
    finally:
        model.generation_config = own


def _until_end(tokens: list[int], ends: set[int]) -> tuple[int, ...]:
    length = next((position for position, token in enumerate(tokens) if token in ends), len(tokens))
    return tuple(tokens[: max(length, 1)])


def _through_end(tokens: list[int], ends: set[int]) -> tuple[int, ...]:
    length = next((position + 1 for position, token in enumerate(tokens) if token in ends), len(tokens))
    return tuple(tokens[:length])
