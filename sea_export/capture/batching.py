"""The plan of the forward passes over prompts with several completions. Tokens in common are computed once.

There are several levels, and each uses the key/value cache of the one before: what prompts begin with in common, which
is a tree, the rest of each prompt, and the completions. Sequences are sorted by length and batched by a token budget.

Some caches cannot be used again, because layers keep recurrent states in them: then sequences are computed whole. And
in some models a token depends on more than the tokens before it in its own sequence: then each sequence is computed by
itself. `sea_export.capture.prefix_cache` finds out which of these a model needs.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from typing import TYPE_CHECKING

from torch import nn

from sea_export.capture.prefix_tree import PrefixNode, prefix_nodes

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = [
    "Batch",
    "Pass",
    "PassPlan",
    "PrefixCacheMode",
    "PromptedCompletions",
    "Segment",
    "longest_and_shortest",
    "needs_equal_lengths",
    "plan_passes",
    "processing_order",
    "takes_positions",
]

# The share of a pass that may be padding.
_PADDING = 0.03
# Less padding than this never divides a pass over prompts or completions: a part of the budget, or a few tokens. To
# divide prompts costs more, as it divides their completions too.
_SPARED_PROMPTS, _SPARED_COMPLETIONS, _SPARED = 1 / 64, 1 / 512, 4


@dataclass(frozen=True)
class PromptedCompletions:
    """A prompt and the completions that follow it, in tokens. A completion sees the prompt, not the other completions.

    If the prompt is empty, the completions are computed without any tokens before them.
    """

    prompt: Sequence[int]
    completions: Sequence[Sequence[int]]


class PrefixCacheMode(Enum):
    """What the computations of several sequences may have in common."""

    CACHES = "prompts are computed once, and completions on their caches"
    PASSES = "sequences are computed whole, side by side in one pass"
    NOTHING = "every prompt, and every prompt with a completion, has a pass of its own"


@dataclass(frozen=True)
class Segment:
    """Consecutive tokens of one sequence, and where a pass computes them."""

    item: int | None
    """Index of the item; None for a prefix that items share."""
    completion: int | None
    """Index of the completion; None for the prompt."""
    start: int
    """Position of the first token within the prompt or the completion."""
    length: int
    row: int
    """Row of the pass's output (batch, tokens, ...)."""
    column: int = 0
    """Column of the first token there."""
    shared_by: tuple[int, ...] = ()
    """The items that share a prefix."""


@dataclass(frozen=True, eq=False)
class Pass:
    """One call of the model: sequences padded on the right, which may continue those of another pass."""

    segments: tuple[Segment, ...]
    sequences: tuple[tuple[int, ...], ...]
    """The tokens of each row."""
    past_masks: tuple[tuple[int, ...], ...] = ()
    """For each row, whether each cached token is real (1) or padding (0); empty without a cache."""
    positions: tuple[int, ...] = ()
    """For each row, the position of its first token; empty without a cache, where all are 0."""
    continues: Pass | None = None
    """The pass whose cache this pass continues from; None if it starts without a cache."""
    rows: tuple[int, ...] = ()
    """For each row, the row of that cache from which it continues."""

    @cached_property
    def width(self) -> int:
        """The number of columns that are computed."""
        return max(len(sequence) for sequence in self.sequences)

    @property
    def past(self) -> int:
        """The number of columns that are cached."""
        return len(self.past_masks[0]) if self.past_masks else 0


@dataclass(frozen=True)
class Batch:
    """Passes that finish some items: their prompts first, if they have a pass of their own, then the completions."""

    indices: tuple[int, ...]
    passes: tuple[Pass, ...]


@dataclass(frozen=True)
class PassPlan:
    """All passes over some items."""

    shared: tuple[Pass, ...]
    """The passes over what prompts begin with in common, each after the one from which it continues."""
    batches: tuple[Batch, ...]


def processing_order(items: Sequence[PromptedCompletions]) -> list[int]:
    """The indices of items in the order of computation: what begins in the same way together, and of it the longest
    first, so that memory is largest at the start.

    Args:
        items: prompts with their completions.
    """
    return [index for node in prefix_nodes([item.prompt for item in items]) for index in _sorted(items, node.members)]


def longest_and_shortest(items: Sequence[PromptedCompletions]) -> list[int]:
    """The indices of the items with the longest and the shortest prompt; one index if they are the same.

    Args:
        items: prompts with their completions.
    """
    order = _sorted(items, range(len(items)))
    return list(dict.fromkeys((order[0], order[-1])))


def _sorted(items: Sequence[PromptedCompletions], indices: Iterable[int]) -> list[int]:
    return sorted(indices, key=lambda i: (len(items[i].prompt), _longest(items[i])), reverse=True)


def plan_passes(
    model: PreTrainedModel, items: Sequence[PromptedCompletions], *, batch_tokens: int, prefix_cache: PrefixCacheMode
) -> PassPlan:
    """Plans all passes over some items.

    Args:
        model: the model that computes prompts and completions.
        items: prompts with their completions. No completion is empty.
        batch_tokens: about how many tokens a pass computes.
        prefix_cache: see `sea_export.capture.prefix_cache.prefix_cache_mode`.
    """
    if prefix_cache is PrefixCacheMode.NOTHING:
        return PassPlan((), tuple(Batch((index,), _single_passes(items, index)) for index in processing_order(items)))
    if prefix_cache is PrefixCacheMode.PASSES:
        return PassPlan((), tuple(_whole_batches(items, batch_tokens)))
    prefixes: list[Pass | None] = []
    batches: list[Batch] = []
    for node in prefix_nodes([item.prompt for item in items]):
        prefix = _prefix_pass(items, node, None if node.parent is None else prefixes[node.parent])
        prefixes.append(prefix)
        for indices in _batches(items, node, batch_tokens, needs_equal_lengths(model)):
            batches.append(_planned_batch(items, indices, prefix, node.end, batch_tokens))
    return PassPlan(tuple(one for one in prefixes if one is not None), tuple(batches))


def _prefix_pass(items: Sequence[PromptedCompletions], node: PrefixNode, before: Pass | None) -> Pass | None:
    """The pass over the tokens of a node; None for a node without any."""
    if node.start == node.end:
        return None
    segment = Segment(None, None, start=node.start, length=node.end - node.start, row=0, shared_by=node.below)
    tokens = tuple(items[node.below[0]].prompt[node.start : node.end])
    if before is None:
        return Pass((segment,), (tokens,))
    return Pass((segment,), (tokens,), ((1,) * node.start,), (node.start,), before, (0,))


def needs_equal_lengths(model: PreTrainedModel) -> bool:
    """Whether padding between a prompt and its completion would change the result, although it is masked.

    It does where distance is counted by cache position: in sliding windows, and in models without position ids.
    """
    text_config = model.config.get_text_config()
    kinds = set(getattr(text_config, "layer_types", None) or ["full_attention"])
    windowed = getattr(text_config, "sliding_window", None) is not None
    return kinds != {"full_attention"} or windowed or not takes_positions(model)


def _batches(
    items: Sequence[PromptedCompletions], node: PrefixNode, budget: int, equal_lengths: bool
) -> Iterator[tuple[int, ...]]:
    """Indices of the members of a node, sorted by length, in batches as large as the budget and padding allow."""
    batch: list[int] = []
    for index in _sorted(items, node.members):
        prompts = [len(items[one].prompt) - node.end for one in (*batch, index)]
        if items[index].prompt:
            full = _is_full(prompts, _row_cost(prompts[0], node.end), budget, _SPARED_PROMPTS)
        else:  # the pass of a batch is that of its completions
            full = sum(len(one) for item in (*batch, index) for one in items[item].completions) > budget
        differs = prompts[-1] != prompts[0] and (equal_lengths or not items[index].prompt)
        if batch and (full or differs):
            yield tuple(batch)
            batch = []
        batch.append(index)
    if batch:
        yield tuple(batch)


def _is_full(lengths: Sequence[int], cost: int, budget: int, spared: float) -> bool:
    """Whether a pass over sequences, the longest first, is too large, or has too much padding for its size.

    Args:
        lengths: of all sequences.
        cost: of one of them in tokens.
        budget: that of the pass.
        spared: the part of the budget up to which padding does not count.
    """
    computed = lengths[0] * len(lengths)
    padding = computed - sum(lengths)
    return cost * len(lengths) > budget or padding > max(_PADDING * computed, spared * budget, _SPARED)


def _row_cost(tokens: int, context: int) -> int:
    """The cost of a row in tokens: those to compute, and a part of those in the cache, which are copied and read."""
    return tokens + context // 8


def _longest(item: PromptedCompletions) -> int:
    return max(len(completion) for completion in item.completions)


def _planned_batch(
    items: Sequence[PromptedCompletions], indices: tuple[int, ...], prefix: Pass | None, shared: int, budget: int
) -> Batch:
    """The passes over some items whose first `shared` tokens are those of `prefix` and of what it continues."""
    prompts = [tuple(items[index].prompt[shared:]) for index in indices]
    width = max(len(prompt) for prompt in prompts)
    prompt_pass = None
    if width:
        prompt_pass = Pass(
            segments=tuple(
                Segment(item=index, completion=None, start=shared, length=len(prompt), row=row)
                for row, (index, prompt) in enumerate(zip(indices, prompts, strict=True))
            ),
            sequences=tuple(prompts),
            past_masks=((1,) * shared,) * len(indices) if shared else (),
            positions=(shared,) * len(indices) if shared else (),
            continues=prefix,
            rows=(0,) * len(indices) if shared else (),
        )
    masks = [(1,) * (shared + len(prompt)) + (0,) * (width - len(prompt)) for prompt in prompts]
    passes = [] if prompt_pass is None else [prompt_pass]
    for group in _completion_groups(items, indices, budget):
        completions = [tuple(items[indices[row]].completions[completion]) for row, completion in group]
        passes.append(
            Pass(
                segments=tuple(
                    Segment(item=indices[row], completion=completion, start=0, length=len(tokens), row=position)
                    for position, ((row, completion), tokens) in enumerate(zip(group, completions, strict=True))
                ),
                sequences=tuple(completions),
                past_masks=tuple(masks[row] for row, _ in group) if prompt_pass else (),
                positions=tuple(len(items[indices[row]].prompt) for row, _ in group) if prompt_pass else (),
                continues=prompt_pass,
                rows=tuple(row for row, _ in group) if prompt_pass else (),
            )
        )
    return Batch(indices, tuple(passes))


def _completion_groups(
    items: Sequence[PromptedCompletions], indices: tuple[int, ...], budget: int
) -> Iterator[list[tuple[int, int]]]:
    """Pairs of a prompt's row and a completion, sorted by length, in groups as large as budget and padding allow."""
    pairs = [
        (row, completion) for row, index in enumerate(indices) for completion in range(len(items[index].completions))
    ]

    def length(pair: tuple[int, int]) -> int:
        return len(items[indices[pair[0]]].completions[pair[1]])

    context = max(len(items[index].prompt) for index in indices)
    group: list[tuple[int, int]] = []
    for pair in sorted(pairs, key=length, reverse=True):
        lengths = [length(one) for one in (*group, pair)]
        if group and _is_full(lengths, _row_cost(lengths[0], context), budget, _SPARED_COMPLETIONS):
            yield group
            group = []
        group.append(pair)
    yield group


def _whole_batches(items: Sequence[PromptedCompletions], budget: int) -> Iterator[Batch]:
    """Batches of one pass each. Every row is a prompt with one of its completions."""
    batch: list[int] = []
    for index in processing_order(items):
        longest = max((len(items[i].prompt) + _longest(items[i]) for i in (*batch, index)), default=0)
        rows = sum(len(items[i].completions) for i in (*batch, index))
        if batch and longest * rows > budget:
            yield Batch(tuple(batch), (_whole_pass(items, batch),))
            batch = []
        batch.append(index)
    yield Batch(tuple(batch), (_whole_pass(items, batch),))


def _whole_pass(items: Sequence[PromptedCompletions], indices: Sequence[int]) -> Pass:
    segments: list[Segment] = []
    sequences: list[tuple[int, ...]] = []
    for index in indices:
        prompt = tuple(items[index].prompt)
        for completion, tokens in enumerate(items[index].completions):
            row = len(sequences)
            if completion == 0 and prompt:
                segments.append(Segment(item=index, completion=None, start=0, length=len(prompt), row=row))
            segments.append(Segment(index, completion, start=0, length=len(tokens), row=row, column=len(prompt)))
            sequences.append((*prompt, *tokens))
    return Pass(tuple(segments), tuple(sequences))


def _single_passes(items: Sequence[PromptedCompletions], index: int) -> tuple[Pass, ...]:
    prompt = tuple(items[index].prompt)
    passes = [Pass((Segment(item=index, completion=None, start=0, length=len(prompt), row=0),), (prompt,))]
    for completion, tokens in enumerate(items[index].completions):
        segment = Segment(index, completion, start=0, length=len(tokens), row=0, column=len(prompt))
        passes.append(Pass((segment,), ((*prompt, *tokens),)))
    return tuple(passes if prompt else passes[1:])


def takes_positions(model: nn.Module) -> bool:
    """Whether the forward call of the model takes the position of each token."""
    return "position_ids" in inspect.signature(model.forward).parameters
