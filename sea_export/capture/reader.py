"""Reads activations in forward passes: hooks add up the wanted tokens of a module's output, and keep nothing else."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sea_export.capture.activations import Activations
from sea_export.capture.batching import PromptedCompletions, Segment
from sea_export.errors import InputError
from sea_export.model.targets import Target
from sea_export.options import CaptureOptions

__all__ = ["ActivationReader"]

# The kinds of activations. The completions of an item are in this order.
_KINDS = ("positive", "negative", "neutral")


@dataclass(frozen=True)
class _Weighting:
    """The tokens of a span whose weighted sum is an activation: Σ weight · token."""

    tokens: Sequence[int]
    weight: float


_Wanted = dict[tuple[int, int | None], tuple[int, _Weighting]]


class ActivationReader:
    """A `SegmentObserver` that adds up the activations of wanted tokens for each hooked module, item and kind."""

    def __init__(self, items: Sequence[PromptedCompletions], options: CaptureOptions) -> None:
        """Decides what is read.

        Args:
            items: prompts, each with its positive and its negative completion. If neutral activations are not read in
                the prompt, a third completion is the text in which they are.
            options: which activations to read.
        """
        self._wanted = _wanted_positions(items, options)
        self._sums: dict[Target, dict[int, Tensor]] = {}
        self._shared: dict[Target, dict[int, list[Tensor]]] = {}
        self._passes: dict[int, _PassReading] = {}
        self._pass: _PassReading | None = None

    def before_pass(self, segments: Sequence[Segment]) -> None:
        if id(segments) not in self._passes:
            self._passes[id(segments)] = _PassReading(segments, self._wanted)
        self._pass = self._passes[id(segments)]

    def after_pass(self, segments: Sequence[Segment], output: Any) -> None:
        del self._passes[id(segments)]
        self._pass = None

    def hook(self, target: Target) -> Callable[[nn.Module, object, Any], None]:
        """The forward hook that reads `target`'s module."""

        def read(module: nn.Module, inputs: object, output: Any) -> None:
            hidden = output[0] if isinstance(output, (tuple, list)) else output
            assert self._pass is not None
            if hidden.ndim == 2:  # tokens of all sequences in one row after the other
                hidden = hidden.view(self._pass.rows, -1, hidden.shape[-1])
            if hidden.shape[1] != self._pass.width:
                raise InputError(
                    f"layer {target.layer}, {target.component}: it computes {hidden.shape[1]} columns for "
                    f"{self._pass.width} tokens, so that it is not known which column belongs to which token. Choose "
                    "other --layers or another --target."
                )
            if self._pass.is_shared:
                shared = self._shared.setdefault(target, {})
                for item, tokens in self._pass.read_shared(hidden):
                    shared.setdefault(item, []).append(tokens)
            else:
                self._sums.setdefault(target, {}).update(self._pass.read(hidden))

        return read

    def take(self, target: Target, indices: Sequence[int]) -> Activations:
        """Hands over the finished activations of one target, and forgets them.

        Args:
            target: a target whose module was read.
            indices: the items, whose passes have all run.

        Returns:
            neutral, positive and negative rows, each (len(indices), d) float32 on the target's device.

        Raises:
            InputError: the module of the target did not run.
        """
        if target not in self._sums:
            raise InputError(
                f"layer {target.layer}, {target.component}: it does not run on text alone, so that there are no "
                "activations of it. Choose other --layers."
            )
        sums = self._sums[target]
        kinds = [
            torch.stack([sums.pop(index * len(_KINDS) + kind) for index in indices]) for kind in range(len(_KINDS))
        ]
        neutral = kinds[_KINDS.index("neutral")]
        shared = self._shared.get(target, {})
        for row, index in enumerate(indices):
            for tokens in shared.pop(index, ()):
                neutral[row] += self._wanted[index, None][1].weight * tokens
        return Activations(**dict(zip(_KINDS, kinds, strict=True)))


def _wanted_positions(items: Sequence[PromptedCompletions], options: CaptureOptions) -> _Wanted:
    """For (item, completion, or None for the prompt): the kind of activation that it gives, and from which tokens."""
    wanted = {}
    for index, item in enumerate(items):
        # The draw depends on the seed and the item only, not on the other items that are captured.
        generator = random.Random(f"{options.seed} {item}") if options.position == "random" else None
        spans: list[tuple[int | None, Sequence[int]]] = list(enumerate(item.completions))
        if options.neutral == "prompt":
            spans.append((None, item.prompt))
        for kind, (completion, span) in enumerate(spans):
            length = len(span)
            if options.position == "last":
                weighting = _Weighting((length - 1,), 1.0)
            elif options.position == "mean":
                weighting = _Weighting(range(length), 1.0 / length)
            else:
                assert generator is not None
                weighting = _Weighting((generator.randrange(length),), 1.0)
            wanted[index, completion] = (kind, weighting)
    return wanted


class _PassReading:
    """Which entries of the output of one pass are read, and into which sums they are added."""

    def __init__(self, segments: Sequence[Segment], wanted: _Wanted) -> None:
        self.is_shared = segments[0].item is None
        self._sharing = _sharing(segments[0], wanted)
        self.rows = 1 + max(segment.row for segment in segments)
        self.width = max(segment.column + segment.length for segment in segments)
        self.slots: list[int] = []
        rows, columns, sums, weights = [], [], [], []
        for segment in segments:
            if segment.item is None or (segment.item, segment.completion) not in wanted:
                continue
            kind, weighting = wanted[segment.item, segment.completion]
            self.slots.append(segment.item * len(_KINDS) + kind)
            for token in weighting.tokens:
                if segment.start <= token < segment.start + segment.length:
                    rows.append(segment.row)
                    columns.append(segment.column + token - segment.start)
                    sums.append(len(self.slots) - 1)
                    weights.append(weighting.weight)
        self._rows, self._columns = torch.tensor(rows), torch.tensor(columns)
        self._sums, self._weights = torch.tensor(sums), torch.tensor(weights)

    def read_shared(self, hidden: Tensor) -> Iterator[tuple[int, Tensor]]:
        """For each item that wants tokens of a shared prefix their sum, (d,) float32; the same tensor for all alike."""
        for columns, items in self._sharing.items():
            tokens = hidden[0, torch.tensor(columns, device=hidden.device)].float().sum(0)
            yield from ((item, tokens) for item in items)

    def read(self, hidden: Tensor) -> dict[int, Tensor]:
        """The sums of the wanted tokens by slot, (d,) float32 each, of a module's output (batch, tokens, d)."""
        if not self.slots:
            return {}
        device = hidden.device
        sums = torch.zeros(len(self.slots), hidden.shape[-1], device=device)
        if self._rows.numel():
            tokens = hidden[self._rows.to(device), self._columns.to(device)].float()
            sums.index_add_(0, self._sums.to(device), tokens * self._weights.to(device)[:, None])
        return dict(zip(self.slots, sums, strict=True))


def _sharing(segment: Segment, wanted: _Wanted) -> dict[tuple[int, ...], list[int]]:
    """Of a shared prefix: sets of columns, and the items whose prompts want the tokens there."""
    sharing: dict[tuple[int, ...], list[int]] = {}
    for item in segment.shared_by:
        if (item, None) in wanted:
            tokens = wanted[item, None][1].tokens
            end = segment.start + segment.length
            columns = tuple(token - segment.start for token in tokens if segment.start <= token < end)
            if columns:
                sharing.setdefault(columns, []).append(item)
    return sharing
