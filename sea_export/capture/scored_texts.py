"""Texts whose completions are scored, and how they stand in the rows of a batch.

Packed, a prompt and all of its completions are one row: each completion has the positions that follow the prompt, and
sees the prompt and itself, but no other completion. So a prompt is computed once. Otherwise every completion has a row
of its own, after the prompt.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

__all__ = ["ScoredRows", "ScoredText", "row_batches"]


@dataclass(frozen=True)
class ScoredText:
    """A prompt with completions whose tokens count.

    Attributes:
        prompt: its tokens, at least one.
        completions: at least one, each of at least one token.
        weights: of each completion, the factor of the sum of its log-probabilities.
    """

    prompt: Sequence[int]
    completions: Sequence[Sequence[int]]
    weights: Sequence[float]

    @property
    def scored_tokens(self) -> int:
        """How many tokens count."""
        return sum(len(completion) for completion in self.completions)


@dataclass(frozen=True)
class _Row:
    """One row: a prompt, and one or all of its completions."""

    text: int
    first: int
    """The first of its completions."""
    prompt: Sequence[int]
    completions: Sequence[Sequence[int]]
    weights: Sequence[float]

    @property
    def length(self) -> int:
        return len(self.prompt) + sum(len(completion) for completion in self.completions)


def row_batches(texts: Sequence[ScoredText], batch_tokens: int, *, packed: bool) -> Iterator[ScoredRows]:
    """The rows of texts, the longest first, in batches that have about `batch_tokens` tokens with padding.

    Args:
        texts: the texts. All rows of a text are in one batch.
        batch_tokens: the budget; a single text may need more.
        packed: whether all completions of a text stand in one row.
    """
    rows = [_rows(index, text, packed) for index, text in enumerate(texts)]
    order = sorted(rows, key=lambda own: max(row.length for row in own), reverse=True)
    batch: list[_Row] = []
    for own in order:
        if batch and batch[0].length * (len(batch) + len(own)) > batch_tokens:
            yield ScoredRows(tuple(batch), packed)
            batch = []
        # The longest row of a batch is its first one.
        batch += sorted(own, key=lambda row: row.length, reverse=True)
    if batch:
        yield ScoredRows(tuple(batch), packed)


def _rows(index: int, text: ScoredText, packed: bool) -> list[_Row]:
    if packed:
        return [_Row(index, 0, text.prompt, text.completions, text.weights)]
    return [
        _Row(index, number, text.prompt, [completion], [weight])
        for number, (completion, weight) in enumerate(zip(text.completions, text.weights, strict=True))
    ]


@dataclass(frozen=True)
class ScoredRows:
    """Rows that are computed together, padded on the right."""

    rows: tuple[_Row, ...]
    packed: bool

    @property
    def texts(self) -> tuple[int, ...]:
        """(rows,) the index of each row's text."""
        return tuple(row.text for row in self.rows)

    @property
    def finished(self) -> int:
        """The number of texts."""
        return len(set(self.texts))

    @cached_property
    def _shape(self) -> tuple[int, int]:
        return len(self.rows), max(row.length for row in self.rows)

    def ids(self) -> Tensor:
        """(rows, tokens) int64, 0 at padding."""
        ids = torch.zeros(self._shape, dtype=torch.long)
        for index, row in enumerate(self.rows):
            tokens = [*row.prompt, *(token for completion in row.completions for token in completion)]
            ids[index, : len(tokens)] = torch.tensor(tokens)
        return ids

    def mask(self) -> Tensor:
        """(rows, tokens) bool: what is no padding."""
        mask = torch.zeros(self._shape, dtype=torch.bool)
        for index, row in enumerate(self.rows):
            mask[index, : row.length] = True
        return mask

    def distinct(self) -> Tensor:
        """(rows, tokens) bool: the tokens of the texts, a prompt in one of its rows only."""
        distinct = self.mask()
        for index, row in enumerate(self.rows):
            if row.first > 0:
                distinct[index, : len(row.prompt)] = False
        return distinct

    def inputs(self, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
        """The arguments of the model besides its cache.

        Args:
            device: where the ids go.
            dtype: of the model, in which masks are added to scores of attention.
        """
        if not self.packed:
            return {"input_ids": self.ids().to(device), "attention_mask": self.mask().long().to(device)}
        seen = self._seen()
        bias = torch.zeros(seen.shape, dtype=dtype).masked_fill(~seen, torch.finfo(dtype).min)
        return {
            "input_ids": self.ids().to(device),
            "attention_mask": bias[:, None].to(device),
            "position_ids": self._positions().to(device),
        }

    def _seen(self) -> Tensor:
        """(rows, tokens, tokens) bool: which token sees which one. Padding sees itself, as something must be seen."""
        rows, width = self._shape
        seen = torch.eye(width, dtype=torch.bool).repeat(rows, 1, 1)
        for index, row in enumerate(self.rows):
            start = len(row.prompt)
            seen[index, : row.length, :start] = True
            for completion in row.completions:
                end = start + len(completion)
                seen[index, start:end, start:end] = True
                start = end
        return seen & torch.ones(width, width, dtype=torch.bool).tril()

    def _positions(self) -> Tensor:
        positions = torch.zeros(self._shape, dtype=torch.long)
        for index, row in enumerate(self.rows):
            start = len(row.prompt)
            positions[index, :start] = torch.arange(start)
            for completion in row.completions:
                end = start + len(completion)
                positions[index, start:end] = torch.arange(len(row.prompt), len(row.prompt) + len(completion))
                start = end
        return positions

    def scored(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Of all scored tokens: the row and the column of the logits that predict it, the token, and the weight."""
        rows: list[int] = []
        columns: list[int] = []
        tokens: list[int] = []
        weights: list[float] = []
        for index, row in enumerate(self.rows):
            start = len(row.prompt)
            for completion, weight in zip(row.completions, row.weights, strict=True):
                rows += [index] * len(completion)
                # The last token of the prompt predicts the first one of every completion.
                columns += [len(row.prompt) - 1, *range(start, start + len(completion) - 1)]
                tokens += completion
                weights += [weight] * len(completion)
                start += len(completion)
        return torch.tensor(rows), torch.tensor(columns), torch.tensor(tokens), torch.tensor(weights)
