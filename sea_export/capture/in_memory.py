"""Capture of a model that is in memory: the activations of every target over the demonstrations.

Neutral activations are read in the pass over the prompts. The positive and the negative completions continue from its
key/value cache. Tokens that all prompts begin with are computed once (see `sea_export.capture.forward`). Only the
decoder runs, without the language-model head, and only up to the last edited layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from sea_export.capture.activations import Activations
from sea_export.capture.batching import PromptedCompletions
from sea_export.capture.forward import run_batches
from sea_export.capture.generate import greedy_continuations
from sea_export.capture.prefix_cache import prefix_cache_mode
from sea_export.capture.reader import ActivationReader
from sea_export.demonstrations.tokenize import TokenizedDemonstration
from sea_export.model.architecture import OutputProjection, decoder_layers, find_output_projections
from sea_export.model.targets import Target
from sea_export.options import CaptureOptions

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["capture", "capture_batches", "layers_up_to", "prompted_items", "read_modules"]


def capture(
    model: PreTrainedModel,
    demonstrations: Sequence[TokenizedDemonstration],
    targets: Sequence[Target],
    options: CaptureOptions | None = None,
) -> dict[Target, Activations]:
    """All activations at once, in the order of the demonstrations.

    Args:
        model: a causal language model.
        demonstrations: n of them, tokenized.
        targets: the targets to read.
        options: which activations to read; None for the defaults.

    Returns:
        For each target neutral, positive and negative activations, each (n, d) float32 on the CPU.

    Raises:
        InputError: see `sea_export.model.architecture.find_output_projections`.
    """
    rows: dict[Target, Tensor] = {}
    projections = find_output_projections(model, targets)
    for indices, batch in capture_batches(model, demonstrations, projections, options or CaptureOptions()):
        for target, activations in batch.items():
            kinds = torch.stack([activations.neutral, activations.positive, activations.negative]).cpu()
            if target not in rows:
                rows[target] = kinds.new_empty(3, len(demonstrations), kinds.shape[2])
            rows[target][:, list(indices)] = kinds
    return {target: Activations(*kinds) for target, kinds in rows.items()}


def capture_batches(
    model: PreTrainedModel,
    demonstrations: Sequence[TokenizedDemonstration],
    projections: Sequence[OutputProjection],
    options: CaptureOptions,
    progress: Callable[[int], None] | None = None,
) -> Iterator[tuple[tuple[int, ...], dict[Target, Activations]]]:
    """The activations batch by batch, so that statistics need not keep all of them.

    Args:
        model: a causal language model; it is put into evaluation mode.
        demonstrations: n of them, tokenized.
        projections: the output projections of the targets to read.
        options: which activations to read.
        progress: told the number of demonstrations that a batch has finished.

    Yields:
        Indices of the batch's demonstrations, and for each target their activations, (batch, d) float32 on the
        target's device.
    """
    model.eval()
    items = prompted_items(model, demonstrations, options)
    reader = ActivationReader(items, options)
    modules = read_modules(model, projections, options.site)
    with layers_up_to(model, max(target.layer for target in modules)), ExitStack() as hooks:
        decoder = cast("PreTrainedModel", model.base_model)
        prefix_cache = prefix_cache_mode(decoder, items, batch_tokens=options.batch_tokens)
        for target, module in modules.items():
            hooks.callback(module.register_forward_hook(reader.hook(target)).remove)
        for indices in run_batches(
            decoder,
            decoder,
            items,
            batch_tokens=options.batch_tokens,
            prefix_cache=prefix_cache,
            observer=reader,
        ):
            yield indices, {target: reader.take(target, indices) for target in modules}
            if progress is not None:
                progress(len(indices))


def prompted_items(
    model: PreTrainedModel, demonstrations: Sequence[TokenizedDemonstration], options: CaptureOptions
) -> list[PromptedCompletions]:
    """The prompt of each demonstration with its two completions, positive first.

    For `--neutral generated` the model's own continuation of the prompt is a third completion.

    Args:
        model: a causal language model; it runs only for `--neutral generated`.
        demonstrations: n of them, tokenized.
        options: `neutral`, `neutral_tokens` and `batch_tokens` are used.
    """
    items = [PromptedCompletions(one.prompt, (one.positive, one.negative)) for one in demonstrations]
    if options.neutral == "prompt":
        return items
    continuations = greedy_continuations(
        model,
        [item.prompt for item in items],
        new_tokens=options.neutral_tokens,
        batch_tokens=options.batch_tokens,
    )
    return [
        PromptedCompletions(item.prompt, (*item.completions, continuation))
        for item, continuation in zip(items, continuations, strict=True)
    ]


def read_modules(model: PreTrainedModel, projections: Sequence[OutputProjection], site: str) -> dict[Target, nn.Module]:
    """The module whose output is read for each target.

    Args:
        model: a causal language model.
        projections: the output projections of the targets.
        site: `target` for the module whose output is edited, `residual` for the decoder block.
    """
    if site == "residual":
        layers = decoder_layers(model)[1]
        return {one.target: layers[one.target.layer] for one in projections}
    return {one.target: model.get_submodule(one.module_name) for one in projections}


@contextmanager
def layers_up_to(model: PreTrainedModel, last: int) -> Iterator[None]:
    """Removes the last layers, which are not read, and puts them back when the context ends.

    Args:
        model: a causal language model.
        last: the last layer that stays.
    """
    name, layers = decoder_layers(model)
    parent, _, attribute = name.rpartition(".")
    owner = model.get_submodule(parent)
    setattr(owner, attribute, layers[: last + 1])
    try:
        yield
    finally:
        setattr(owner, attribute, layers)
