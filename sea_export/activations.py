"""Capture: the activations of every edited place over the demonstrations.

Neutral activations come out of the pass over the prompts, whose key/value cache the positive and the negative
completions share; what all prompts begin with is computed once (see `sea_export.forward`). Only the decoder runs,
never the language-model head, and only up to the last edited layer. Hooks read the modules' outputs themselves,
and keep nothing but the wanted positions.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from sea_export.architecture import decoder_layers, find_writers
from sea_export.demonstrations import TokenizedDemonstration
from sea_export.edit import Target
from sea_export.forward import PromptedCompletions, Segment, run_batches
from sea_export.generation import greedy_continuations
from sea_export.options import CaptureOptions
from sea_export.spectral import Activations

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["capture", "capture_batches"]

# A row of activations is neutral, positive or negative; the completions of an item are in this order.
_KINDS = ("positive", "negative", "neutral")


def capture(
    model: PreTrainedModel,
    demonstrations: Sequence[TokenizedDemonstration],
    targets: Sequence[Target],
    options: CaptureOptions | None = None,
) -> dict[Target, Activations]:
    """All activations at once, in the demonstrations' order.

    Args:
        model: a causal language model.
        demonstrations: n of them, tokenized.
        targets: the places to read.
        options: which activations to read.

    Returns:
        For each target neutral, positive and negative activations, each (n, d) float32 on the CPU.

    Raises:
        InputError: see `sea_export.architecture.find_writers`.
    """
    rows: dict[Target, Tensor] = {}
    for indices, batch in capture_batches(model, demonstrations, targets, options or CaptureOptions()):
        for target, activations in batch.items():
            kinds = torch.stack([activations.neutral, activations.positive, activations.negative]).cpu()
            if target not in rows:
                rows[target] = kinds.new_empty(3, len(demonstrations), kinds.shape[2])
            rows[target][:, list(indices)] = kinds
    return {target: Activations(*kinds) for target, kinds in rows.items()}


def capture_batches(
    model: PreTrainedModel,
    demonstrations: Sequence[TokenizedDemonstration],
    targets: Sequence[Target],
    options: CaptureOptions,
    progress: Callable[[int], None] | None = None,
) -> Iterator[tuple[tuple[int, ...], dict[Target, Activations]]]:
    """The activations batch by batch, for statistics that need not keep them.

    Args:
        model: a causal language model; it is put into evaluation mode.
        demonstrations: n of them, tokenized.
        targets: the places to read.
        options: which activations to read.
        progress: told the number of demonstrations that a batch has finished.

    Yields:
        Indices of the batch's demonstrations, and for each target their activations, (batch, d) float32 on the
        target's device.
    """
    model.eval()
    items = [
        PromptedCompletions(demonstration.prompt, (demonstration.positive, demonstration.negative))
        for demonstration in demonstrations
    ]
    if options.neutral == "generated":
        continuations = greedy_continuations(
            model,
            [item.prompt for item in items],
            new_tokens=options.neutral_tokens,
            batch_tokens=options.batch_tokens,
        )
        items = [
            PromptedCompletions(item.prompt, (*item.completions, continuation))
            for item, continuation in zip(items, continuations, strict=True)
        ]
    reader = _Reader(_wanted_positions(items, options))
    modules = _read_modules(model, targets, options.site)
    with _layers_up_to(model, max(target.layer for target in targets)), ExitStack() as hooks:
        for target, module in modules.items():
            hooks.callback(module.register_forward_hook(reader.hook(target)).remove)
        decoder = cast("PreTrainedModel", model.base_model)
        for indices in run_batches(decoder, decoder, items, batch_tokens=options.batch_tokens, observer=reader):
            yield indices, reader.take(indices)
            if progress is not None:
                progress(len(indices))


def _read_modules(model: PreTrainedModel, targets: Sequence[Target], site: str) -> dict[Target, nn.Module]:
    if site == "residual":
        layers = decoder_layers(model)[1]
        return {target: layers[target.layer] for target in targets}
    return {writer.target: model.get_submodule(writer.module_name) for writer in find_writers(model, targets)}


@contextmanager
def _layers_up_to(model: PreTrainedModel, last: int) -> Iterator[None]:
    """Takes the layers after `last` off the model for as long as they would compute what nobody reads."""
    name, layers = decoder_layers(model)
    parent, _, attribute = name.rpartition(".")
    owner = model.get_submodule(parent)
    setattr(owner, attribute, layers[: last + 1])
    try:
        yield
    finally:
        setattr(owner, attribute, layers)


@dataclass(frozen=True)
class _Weighting:
    """Which tokens of a span make an activation: Σ weight · token."""

    tokens: Sequence[int]
    weight: float


def _wanted_positions(
    items: Sequence[PromptedCompletions], options: CaptureOptions
) -> dict[tuple[int, int | None], tuple[int, _Weighting]]:
    """(item, completion or None for the prompt) -> the kind of activation it gives, and from which tokens."""
    generator = random.Random(options.seed)
    wanted = {}
    for index, item in enumerate(items):
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
                weighting = _Weighting((generator.randrange(length),), 1.0)
            wanted[index, completion] = (kind, weighting)
    return wanted


class _Reader:
    """Observes passes: sums the wanted tokens' activations of each hooked module, for each item and kind."""

    def __init__(self, wanted: dict[tuple[int, int | None], tuple[int, _Weighting]]) -> None:
        self._wanted = wanted
        self._sums: dict[Target, dict[int, Tensor]] = {}
        self._shared: dict[Target, Tensor] = {}
        self._shared_length = 0
        self._pass: _PassReading | None = None

    def before_pass(self, segments: Sequence[Segment]) -> None:
        self._pass = _PassReading(segments, self._wanted)
        if segments[0].item is None:
            self._shared_length = segments[0].length

    def after_pass(self, segments: Sequence[Segment], output: Any) -> None:
        self._pass = None

    def hook(self, target: Target) -> Callable[[nn.Module, object, Any], None]:
        """The forward hook that reads `target`'s module."""

        def read(module: nn.Module, inputs: object, output: Any) -> None:
            hidden = output[0] if isinstance(output, (tuple, list)) else output
            assert self._pass is not None
            if hidden.ndim == 2:  # tokens of all sequences in one row after the other
                hidden = hidden.view(self._pass.sequences, -1, hidden.shape[-1])
            if self._pass.shared:
                self._shared[target] = hidden[0].float()
            else:
                self._sums.setdefault(target, {}).update(self._pass.read(hidden))

        return read

    def take(self, indices: Sequence[int]) -> dict[Target, Activations]:
        """The finished activations of the given items, which are then forgotten."""
        taken = {}
        for target, sums in self._sums.items():
            kinds = []
            for kind in range(len(_KINDS)):
                kinds.append(torch.stack([sums[index * len(_KINDS) + kind] for index in indices]))
            if self._shared_length:
                kinds[_KINDS.index("neutral")] += self._shared_part(target, indices)
            named = dict(zip(_KINDS, kinds, strict=True))
            taken[target] = Activations(**named)
        self._sums = {}
        return taken

    def _shared_part(self, target: Target, indices: Sequence[int]) -> Tensor:
        """(batch, d) what the tokens that all prompts begin with contribute to the neutral activations."""
        shared = self._shared[target]
        weights = torch.zeros(len(indices), self._shared_length)
        for row, index in enumerate(indices):
            if (index, None) in self._wanted:
                weighting = self._wanted[index, None][1]
                tokens = [token for token in weighting.tokens if token < self._shared_length]
                weights[row, tokens] = weighting.weight
        return weights.to(shared) @ shared


class _PassReading:
    """Which entries of one pass's output are read, and into which sums."""

    def __init__(
        self, segments: Sequence[Segment], wanted: dict[tuple[int, int | None], tuple[int, _Weighting]]
    ) -> None:
        self.shared = segments[0].item is None
        self.sequences = len(segments)
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
                    columns.append(token - segment.start)
                    sums.append(len(self.slots) - 1)
                    weights.append(weighting.weight)
        self._rows, self._columns = torch.tensor(rows), torch.tensor(columns)
        self._sums, self._weights = torch.tensor(sums), torch.tensor(weights)

    def read(self, hidden: Tensor) -> dict[int, Tensor]:
        """Sums of the wanted tokens by slot, from a module's output (batch, tokens, d)."""
        if not self.slots:
            return {}
        device = hidden.device
        sums = torch.zeros(len(self.slots), hidden.shape[-1], device=device)
        if self._rows.numel():
            tokens = hidden[self._rows.to(device), self._columns.to(device)].float()
            sums.index_add_(0, self._sums.to(device), tokens * self._weights.to(device)[:, None])
        return dict(zip(self.slots, sums, strict=True))
