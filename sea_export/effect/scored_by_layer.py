"""Predictions of a base and of its edits, when only one layer of the base at a time is in memory.

The base and all edits go through the layers together, so that the checkpoint is read once for all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from sea_export.capture.batching import PromptedCompletions
from sea_export.capture.lockstep import ForwardHook, SuspendedPass, advance_together, stops_installed
from sea_export.capture.offloaded import StoredModel
from sea_export.edit.spectral_edit import SpectralEdit
from sea_export.model.architecture import OutputProjection

__all__ = ["predict_by_layer"]

_BATCH_TOKENS = 512
_DECODER = "decoder"


@torch.no_grad()
def predict_by_layer(
    source: StoredModel,
    projections: Sequence[OutputProjection],
    items: Sequence[PromptedCompletions],
    edits: Sequence[SpectralEdit | None],
    observe: Callable[[int, int, Tensor], None],
) -> None:
    """Predicts the tokens of completions, by a base with each of several edits.

    Args:
        source: the base.
        projections: the output projections of the targets that the edits have.
        items: prompts with one completion each.
        edits: the edits; None for the base itself.
        observe: given the index of an item, that of an edit, and the (tokens, vocabulary) float32 log-probabilities of
            the completion. All edits see an item before any sees one of the next batch.
    """
    model: Any = source.model.eval()
    batches = list(_batches(items))

    def run(indices: Sequence[int], number: int) -> None:
        rows = [(*items[index].prompt, *items[index].completions[0]) for index in indices]
        width = max(map(len, rows))
        ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        for row, index in enumerate(indices):
            start, length = len(items[index].prompt) - 1, len(items[index].completions[0])
            observe(index, number, logits[row, start : start + length].float().log_softmax(-1))

    passes = {
        (batch, number): SuspendedPass(partial(run, indices, number))
        for batch, indices in enumerate(batches)
        for number in range(len(edits))
    }

    def advance(layer: int | None) -> object:
        """Runs all passes up to the next layer, through the part of the model that is in memory."""

        def turns() -> Iterator[SuspendedPass]:
            for (_, number), one in passes.items():
                with _applied(edits[number], layer, model, projections):
                    yield one

        return advance_together(turns())

    tokens = sum(len(edits) * len(indices) * max(_length(items[index]) for index in indices) for indices in batches)
    stop_before_the_head: dict[object, tuple[nn.Module, ForwardHook]] = {
        _DECODER: (model.base_model, lambda module, inputs, output: output)
    }
    with ExitStack() as stack:
        for one in passes.values():
            stack.callback(one.close)
        stack.enter_context(stops_installed(model, source.states(tokens, copies=2), stop_before_the_head))
        with source.embedding():
            stop = advance(None)
        while isinstance(stop, int):
            with source.layer(stop):
                stop = advance(stop)
        with source.head():
            advance(None)


def _applied(edit: SpectralEdit | None, layer: int | None, model: Any, projections: Sequence[OutputProjection]) -> Any:
    """A context in which the part of an edit that is about one layer is applied. None is what comes before all."""
    edits = None if edit is None else edit.layers.part(layer)
    if not edits:
        return nullcontext()
    return SpectralEdit(edits).apply(model, [one for one in projections if one.target in edits])


def _batches(items: Sequence[PromptedCompletions]) -> Iterator[list[int]]:
    """Indices of items of about equal length, of at most `_BATCH_TOKENS` tokens together, or one item."""
    batch: list[int] = []
    for index in sorted(range(len(items)), key=lambda index: _length(items[index]), reverse=True):
        if batch and (len(batch) + 1) * _length(items[batch[0]]) > _BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def _length(item: PromptedCompletions) -> int:
    return len(item.prompt) + len(item.completions[0])
