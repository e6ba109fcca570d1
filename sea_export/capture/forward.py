"""Forward passes over prompts with several completions, as `sea_export.capture.batching` plans them.

`run_batches` computes one batch after the other. `sea_export.capture.lockstep` takes all batches through one decoder
layer after the other. Capture and scoring use these functions.
"""

from __future__ import annotations

import copy
import inspect
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol, cast

import torch
from torch import Tensor

from sea_export.capture.batching import (
    Pass,
    PrefixCacheMode,
    PromptedCompletions,
    Segment,
    plan_passes,
    takes_positions,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = [
    "SegmentObserver",
    "cache_arguments",
    "filled_cache",
    "hands_on_caches",
    "input_device",
    "pass_arguments",
    "run_batches",
    "selected_rows",
]


class SegmentObserver(Protocol):
    """An object that is told the layout of each pass before it runs, and is given the output after it."""

    def before_pass(self, segments: Sequence[Segment]) -> None:
        """Called before a pass computes `segments`, or continues with them after other passes ran."""

    def after_pass(self, segments: Sequence[Segment], output: Any) -> None:
        """Called with the model's output for `segments`."""


def hands_on_caches(model: PreTrainedModel) -> bool:
    """Whether the model declares that a completion may be computed from a copy of its prompt's cache.

    That is known only for caches of keys and values. Recurrent states, of state-space and linear attention layers,
    start again when several tokens are given at once, and other contents of a cache may not allow padding.
    """
    from transformers import DynamicCache

    taken = inspect.signature(model.forward).parameters
    if getattr(model, "_is_stateful", False) or not {"cache", "past_key_values"} & taken.keys():
        return False
    if "config" not in inspect.signature(DynamicCache.__init__).parameters:
        return True  # transformers before 4.56: every cache that is not stateful is of keys and values
    known = {"DynamicLayer", "DynamicSlidingWindowLayer", "DummyLayer"}
    return {type(layer).__name__ for layer in DynamicCache(config=model.config).layers} <= known


def input_device(model: PreTrainedModel) -> torch.device:
    """The device for token ids. If the embedding is not in memory at the moment (`meta`), that is the CPU."""
    try:
        device = cast("Tensor", model.get_input_embeddings().weight).device
    except NotImplementedError:  # of a model that does not say which module embeds tokens
        device = next(model.parameters()).device
    return torch.device("cpu") if device.type == "meta" else device


def run_batches(
    prompt_model: PreTrainedModel,
    completion_model: PreTrainedModel,
    items: Sequence[PromptedCompletions],
    *,
    batch_tokens: int,
    prefix_cache: PrefixCacheMode,
    observer: SegmentObserver,
) -> Iterator[tuple[int, ...]]:
    """Runs all items, batch by batch.

    Args:
        prompt_model: the model that computes prompts: the decoder without its head, or with it.
        completion_model: the model that computes completions: the same, or the model with its head.
        items: prompts with their completions. No completion is empty.
        batch_tokens: about how many tokens a pass computes.
        prefix_cache: see `plan_passes`.
        observer: told of every pass.

    Yields:
        the indices of the items that a batch has finished.
    """
    with_caches = prefix_cache is PrefixCacheMode.CACHES
    plan = plan_passes(prompt_model, items, batch_tokens=batch_tokens, prefix_cache=prefix_cache)
    device = input_device(prompt_model)

    def run(one: Pass, cache: Any) -> Any:
        is_prompt = all(segment.completion is None for segment in one.segments)
        model = prompt_model if is_prompt else completion_model
        arguments = pass_arguments(model, one, device) | cache_arguments(model, cache, fills=with_caches)
        observer.before_pass(one.segments)
        with torch.inference_mode():
            output = model(**arguments)
        observer.after_pass(one.segments, output)
        return filled_cache(output) if with_caches else None

    passes = [*plan.shared, *(one for batch in plan.batches for one in batch.passes)]
    waiting = Counter(one.continues for one in passes if one.continues)
    caches: dict[Pass, Any] = {}

    def taken(one: Pass) -> Any:
        """The cache from which a pass continues, which is forgotten after the last one."""
        source = one.continues
        if source is None:
            return None
        selected = selected_rows(caches[source], one.rows)
        waiting[source] -= 1
        if not waiting[source]:
            del caches[source]
        return selected

    def continued(one: Pass) -> Any:
        """The same, after the passes that fill it."""
        unfilled = []
        source = one.continues
        while source is not None and source not in caches:
            unfilled.append(source)
            source = source.continues
        for prefix in reversed(unfilled):
            caches[prefix] = run(prefix, taken(prefix))
        return taken(one)

    for batch in plan.batches:
        for one in batch.passes:
            cache = run(one, continued(one))
            if waiting[one]:
                caches[one] = cache
        yield batch.indices


def pass_arguments(model: PreTrainedModel, one: Pass, device: torch.device) -> dict[str, Tensor]:
    """The arguments of the forward call for a pass, without those for the cache.

    Args:
        model: the model to call.
        one: the pass.
        device: the device of the token ids.
    """
    ids = torch.zeros(len(one.sequences), one.width, dtype=torch.long)
    mask = torch.zeros(len(one.sequences), one.past + one.width, dtype=torch.long)
    for row, sequence in enumerate(one.sequences):
        ids[row, : len(sequence)] = torch.tensor(sequence)
        mask[row, one.past : one.past + len(sequence)] = 1
        if one.past:
            mask[row, : one.past] = torch.tensor(one.past_masks[row])
    arguments = {"input_ids": ids.to(device), "attention_mask": mask.to(device)}
    if takes_positions(model):
        starts = torch.tensor(one.positions or [0] * len(ids))[:, None]
        lasts = torch.tensor([len(sequence) - 1 for sequence in one.sequences])[:, None]
        # Padding repeats the last position, because the next one might be more than the model has.
        arguments["position_ids"] = (starts + torch.arange(one.width).minimum(lasts)).to(device)
    return arguments


def cache_arguments(model: PreTrainedModel, cache: Any, *, fills: bool) -> dict[str, Any]:
    """The arguments of the forward call for the cache.

    Args:
        model: the model to call.
        cache: the cache to continue from, or None.
        fills: whether the call fills a cache that other passes continue from.
    """
    taken = inspect.signature(model.forward).parameters
    if fills:  # transformers before 5.24 has the older name
        return {"cache" if "cache" in taken else "past_key_values": cache, "use_cache": True}
    return {"use_cache": False} if "use_cache" in taken else {}


def filled_cache(output: Any) -> Any:
    """The cache in the output of a forward call that has filled one."""
    return output.cache if "cache" in output else output.past_key_values


def selected_rows(cache: Any, rows: Sequence[int]) -> Any:
    """A new cache of the given rows, which may repeat. The old cache does not change."""
    selected = copy.copy(cache)
    if hasattr(cache, "layers"):
        selected.layers = [copy.copy(layer) for layer in cache.layers]
    else:  # transformers before 4.54 keeps plain lists
        selected.key_cache, selected.value_cache = list(cache.key_cache), list(cache.value_cache)
    selected.batch_select_indices(torch.tensor(rows))
    return selected
