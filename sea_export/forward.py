"""Forward passes over prompts with several completions, in which whatever sequences share is computed once.

Three tiers, each on the key/value cache of the one before: the tokens that all prompts begin with, the rest of
each prompt, and the completions. Sequences are sorted by length and batched by a token budget. Capture and
scoring both stand on this.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["PromptedCompletions", "Segment", "SegmentObserver", "run_batches", "shared_prefix_length"]

# Below this, a pass and a cache of its own cost more than computing the shared tokens again.
_SHORTEST_SHARED_PREFIX = 16


@dataclass(frozen=True)
class PromptedCompletions:
    """A prompt and the completions that follow it, in tokens. A completion sees the prompt, not its siblings.

    A prompt may be empty: its completions are then computed from nothing.
    """

    prompt: Sequence[int]
    completions: Sequence[Sequence[int]]


@dataclass(frozen=True)
class Segment:
    """Consecutive tokens of one sequence and where a pass computes them."""

    item: int | None
    """Index of the item, or None for the prefix that all items share."""
    completion: int | None
    """Which completion of the item, or None for its prompt."""
    start: int
    """Position of the first token within the prompt or the completion."""
    length: int
    row: int
    """Row of the pass's output (batch, tokens, ...): the tokens are its first columns."""


class SegmentObserver(Protocol):
    """What looks at the passes: it is told of the layout before, and given the output after each."""

    def before_pass(self, segments: Sequence[Segment]) -> None:
        """Called before a pass computes `segments`."""

    def after_pass(self, segments: Sequence[Segment], output: Any) -> None:
        """Called with the model's output for `segments`."""


def shared_prefix_length(prompts: Sequence[Sequence[int]]) -> int:
    """How many leading tokens are computed once for all prompts: every prompt keeps at least one of its own."""
    limit = min(len(prompt) for prompt in prompts) - 1
    first, last = min(prompts, key=list), max(prompts, key=list)
    length = next((i for i in range(limit) if first[i] != last[i]), limit)
    return length if length >= _SHORTEST_SHARED_PREFIX and len(prompts) > 1 else 0


def run_batches(
    prompt_model: PreTrainedModel,
    completion_model: PreTrainedModel,
    items: Sequence[PromptedCompletions],
    *,
    batch_tokens: int,
    observer: SegmentObserver,
) -> Iterator[tuple[int, ...]]:
    """Runs all items, and yields the indices of those that a batch has finished.

    Args:
        prompt_model: what computes prompts: the decoder without a head, or with one.
        completion_model: what computes completions (the same, or the model with its head).
        items: prompts with their completions, none of which is empty.
        batch_tokens: about how many tokens a pass computes.
        observer: what looks at the passes.
    """
    runner = _Runner(prompt_model, completion_model, batch_tokens, observer)
    shared = shared_prefix_length([item.prompt for item in items])
    shared_cache = runner.run_shared(items[0].prompt[:shared]) if shared else None
    for batch in _batches(items, shared, batch_tokens, runner.equal_lengths):
        runner.run_batch(items, batch, shared, shared_cache)
        yield batch


def _batches(
    items: Sequence[PromptedCompletions], shared: int, budget: int, equal_lengths: bool
) -> Iterator[tuple[int, ...]]:
    """Indices by length, longest first (so that memory peaks at once), as many a batch as the budget holds."""
    order = sorted(range(len(items)), key=lambda i: (len(items[i].prompt), _longest(items[i])), reverse=True)
    batch: list[int] = []
    for index in order:
        longest_prompt = len(items[batch[0]].prompt) if batch else 0
        tokens = _row_cost(longest_prompt - shared, shared) * (len(batch) + 1)
        own_prompt = len(items[index].prompt)
        differs = own_prompt != longest_prompt and (equal_lengths or own_prompt == 0)
        if batch and (tokens > budget or differs):
            yield tuple(batch)
            batch = []
        batch.append(index)
    yield tuple(batch)


def _row_cost(tokens: int, context: int) -> int:
    """Tokens to compute, and a share for the cached ones, which are copied and attended to."""
    return tokens + context // 8


def _longest(item: PromptedCompletions) -> int:
    return max(len(completion) for completion in item.completions)


class _Runner:
    """One set of models, budget and observer; no state of its own between batches."""

    def __init__(
        self,
        prompt_model: PreTrainedModel,
        completion_model: PreTrainedModel,
        batch_tokens: int,
        observer: SegmentObserver,
    ) -> None:
        self.prompt_model = prompt_model
        self.completion_model = completion_model
        self.batch_tokens = batch_tokens
        self.observer = observer
        self.device = next(prompt_model.parameters()).device
        # Padding between a prompt and its completion is masked, but it moves what counts distance by cache
        # position: sliding windows, recurrent states, and models that take no position ids. Equal lengths then.
        text_config = prompt_model.config.get_text_config()
        kinds = set(getattr(text_config, "layer_types", None) or ["full_attention"])
        windowed = getattr(text_config, "sliding_window", None) is not None
        self.equal_lengths = kinds != {"full_attention"} or windowed or not _takes_positions(prompt_model)

    def run_shared(self, tokens: Sequence[int]) -> Any:
        segment = Segment(item=None, completion=None, start=0, length=len(tokens), row=0)
        output = self._run(self.prompt_model, [segment], [tokens], None, [[]], [0], keep_cache=True)
        return output.past_key_values

    def run_batch(
        self, items: Sequence[PromptedCompletions], batch: tuple[int, ...], shared: int, shared_cache: Any
    ) -> None:
        prompts = [items[index].prompt[shared:] for index in batch]
        width = max(len(prompt) for prompt in prompts)
        masks = [[1] * (shared + len(prompt)) + [0] * (width - len(prompt)) for prompt in prompts]
        cache = self._run_prompts(batch, prompts, shared, shared_cache) if width else None
        for group in self._completion_groups(items, batch):
            rows = [row for row, _ in group]
            completions = [items[batch[row]].completions[completion] for row, completion in group]
            segments = [
                Segment(item=batch[row], completion=completion, start=0, length=len(tokens), row=position)
                for position, ((row, completion), tokens) in enumerate(zip(group, completions, strict=True))
            ]
            self._run(
                self.completion_model,
                segments,
                completions,
                _select(cache, torch.tensor(rows)),
                [masks[row] for row in rows],
                [len(items[batch[row]].prompt) for row in rows],
                keep_cache=True,
            )

    def _run_prompts(
        self, batch: tuple[int, ...], prompts: Sequence[Sequence[int]], shared: int, shared_cache: Any
    ) -> Any:
        """The cache of the prompts, of which `prompts` is what follows the shared prefix."""
        segments = [
            Segment(item=index, completion=None, start=shared, length=len(prompt), row=row)
            for row, (index, prompt) in enumerate(zip(batch, prompts, strict=True))
        ]
        cache = _select(shared_cache, torch.zeros(len(batch), dtype=torch.long))
        past = [[1] * shared] * len(batch)
        output = self._run(self.prompt_model, segments, prompts, cache, past, [shared] * len(batch), keep_cache=True)
        return output.past_key_values

    def _completion_groups(
        self, items: Sequence[PromptedCompletions], batch: tuple[int, ...]
    ) -> Iterator[list[tuple[int, int]]]:
        """(row of the prompt, completion) pairs by length, as many a group as the budget holds."""
        pairs = [
            (row, completion) for row, index in enumerate(batch) for completion in range(len(items[index].completions))
        ]
        costs = {
            (row, completion): _row_cost(len(items[batch[row]].completions[completion]), len(items[batch[row]].prompt))
            for row, completion in pairs
        }
        pairs.sort(key=lambda pair: costs[pair], reverse=True)
        group: list[tuple[int, int]] = []
        for pair in pairs:
            if group and costs[group[0]] * (len(group) + 1) > self.batch_tokens:
                yield group
                group = []
            group.append(pair)
        yield group

    def _run(
        self,
        model: PreTrainedModel,
        segments: Sequence[Segment],
        sequences: Sequence[Sequence[int]],
        cache: Any,
        past_masks: Sequence[Sequence[int]],
        positions: Sequence[int],
        *,
        keep_cache: bool,
    ) -> Any:
        """One pass: sequences padded on the right, after a cache of which `past_masks` says what is real."""
        width = max(len(sequence) for sequence in sequences)
        ids = torch.zeros(len(sequences), width, dtype=torch.long)
        mask = torch.zeros(len(sequences), len(past_masks[0]) + width, dtype=torch.long)
        for row, (sequence, past) in enumerate(zip(sequences, past_masks, strict=True)):
            ids[row, : len(sequence)] = torch.tensor(sequence)
            mask[row, : len(past)] = torch.tensor(past)
            mask[row, len(past) : len(past) + len(sequence)] = 1
        arguments: dict[str, Any] = {
            "input_ids": ids.to(self.device),
            "attention_mask": mask.to(self.device),
            "past_key_values": cache,
            "use_cache": keep_cache,
        }
        if _takes_positions(model):
            starts = torch.tensor(positions)[:, None]
            lasts = torch.tensor([len(sequence) - 1 for sequence in sequences])[:, None]
            # Padding stays at the last position: one further might be more than the model has.
            arguments["position_ids"] = (starts + torch.arange(width).minimum(lasts)).to(self.device)
        self.observer.before_pass(segments)
        with torch.inference_mode():
            output = model(**arguments)
        self.observer.after_pass(segments, output)
        return output


def _takes_positions(model: nn.Module) -> bool:
    return "position_ids" in inspect.signature(model.forward).parameters


def _select(cache: Any, rows: Tensor) -> Any:
    """A new cache with the given rows, which may repeat; the old one stays as it is. Of no cache (None), None."""
    if cache is None:
        return None
    selected = copy.copy(cache)
    if hasattr(cache, "layers"):
        selected.layers = [copy.copy(layer) for layer in cache.layers]
        device = cache.layers[0].keys.device
    else:  # transformers before 4.54 keeps plain lists
        selected.key_cache, selected.value_cache = list(cache.key_cache), list(cache.value_cache)
        device = cache.key_cache[0].device
    selected.batch_select_indices(rows.to(device))
    return selected
