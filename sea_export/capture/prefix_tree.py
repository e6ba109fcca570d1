"""What prompts begin with in common, as a tree: a system prompt, a chat template, a primer, a passage with questions.

The tokens of a node are computed once for all prompts below it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["PrefixNode", "prefix_nodes"]

# For fewer shared tokens, a pass and a cache of their own cost more than computing them again.
_SHORTEST = 16
# Prompts with another prefix are in other batches, which pays only if it saves so many tokens.
_LEAST_SAVED = 256


@dataclass(frozen=True)
class PrefixNode:
    """Tokens with which some prompts go on after those of the parent.

    Attributes:
        start: the number of tokens before them.
        end: the number of tokens up to their end; only the first node may have no tokens.
        parent: the index of the node before; None for the first one.
        members: the prompts, by index, that share nothing more with others.
        below: all prompts that begin so.
    """

    start: int
    end: int
    parent: int | None
    members: tuple[int, ...]
    below: tuple[int, ...]


def prefix_nodes(prompts: Sequence[Sequence[int]]) -> list[PrefixNode]:
    """The tree of prompts. Every prompt keeps a token of its own.

    Args:
        prompts: the tokens of each prompt.

    Returns:
        The nodes, each after its parent, and all nodes below one node together.
    """
    nodes: list[PrefixNode] = []
    pending: list[tuple[list[int], int | None]] = [(list(range(len(prompts))), None)]
    while pending:
        below, parent = pending.pop()
        start = 0 if parent is None else nodes[parent].end
        shared = _shared_length([prompts[index] for index in below])
        end = shared if shared - start >= _SHORTEST else start
        groups = _groups(prompts, below, end)
        grouped = {index for group in groups for index in group}
        members = tuple(index for index in below if index not in grouped)
        pending += [(group, len(nodes)) for group in reversed(groups)]
        nodes.append(PrefixNode(start, end, parent, members, tuple(below)))
    return nodes


def _shared_length(prompts: Sequence[Sequence[int]]) -> int:
    if len(prompts) < 2:
        return 0
    limit = min(len(prompt) for prompt in prompts) - 1
    first, last = min(prompts, key=list), max(prompts, key=list)
    return next((i for i in range(limit) if first[i] != last[i]), max(limit, 0))


def _groups(prompts: Sequence[Sequence[int]], below: Sequence[int], end: int) -> list[list[int]]:
    """Those prompts that share more than their first `end` tokens, so much that it pays."""
    by_next: dict[tuple[int, ...], list[int]] = {}
    for index in below:
        if len(prompts[index]) > end + _SHORTEST:
            by_next.setdefault(tuple(prompts[index][end : end + _SHORTEST]), []).append(index)
    return [group for group in by_next.values() if _saved(prompts, group, end) >= _LEAST_SAVED]


def _saved(prompts: Sequence[Sequence[int]], group: Sequence[int], end: int) -> int:
    return (len(group) - 1) * (_shared_length([prompts[index] for index in group]) - end)
