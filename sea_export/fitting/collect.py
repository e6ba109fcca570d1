"""From demonstrations to spectra: which layers, what is captured by which route, and the statistics of it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from sea_export.capture.activations import Activations
from sea_export.capture.batching import PromptedCompletions, processing_order
from sea_export.capture.cache import ActivationCache, capture_key
from sea_export.capture.in_memory import capture_batches
from sea_export.capture.layerwise import LayerSource, ModelInMemory, capture_by_layer
from sea_export.demonstrations.demonstration import Demonstration
from sea_export.demonstrations.tokenize import TokenizedDemonstration, tokenize
from sea_export.edit.features import FeatureFunction
from sea_export.edit.layer_edit import LayerEdit
from sea_export.errors import InputError
from sea_export.fitting.distributed import ALONE, Processes
from sea_export.fitting.layer_choice import choose_targets
from sea_export.fitting.spectrum import LayerSpectrum, SpectrumFitter
from sea_export.fitting.truncate import build_layer_edit
from sea_export.model.architecture import find_output_projections
from sea_export.model.targets import Target
from sea_export.options import CaptureOptions, FitOptions

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["collect_statistics", "source_of"]

logger = logging.getLogger(__name__)

# How many demonstrations are read from a cache at a time.
_CACHED_ROWS = 1024


def collect_statistics(
    model: PreTrainedModel | LayerSource,
    tokenizer: PreTrainedTokenizerBase,
    demonstrations: Sequence[Demonstration],
    options: FitOptions,
    progress: Callable[[int], None] | None = None,
    *,
    cache: Path | str | None = None,
    processes: Processes = ALONE,
) -> dict[Target, LayerSpectrum]:
    """The spectra of all layers that `options.layers` names (all of them, for `signature:K`).

    Args:
        model: see `fit`.
        tokenizer: its tokenizer.
        demonstrations: at least two.
        options: `edit` is looked at only by a sequential fit.
        progress: told the number of demonstrations that each batch has finished.
        cache: see `fit`.
        processes: those that share the demonstrations.

    Raises:
        InputError: see `fit`.
        SeaExportError: another process has ended.
    """
    if len(demonstrations) < 2:
        raise InputError(f"{len(demonstrations)} demonstrations: a fit needs at least 2")
    processes.check_enough(len(demonstrations))
    source = source_of(model)
    in_memory = isinstance(source, ModelInMemory)
    if options.capture.neutral == "generated" and not in_memory:
        raise InputError(
            "--neutral generated needs all layers for every token, and they are not in memory together: choose "
            "--neutral prompt"
        )
    if options.sequential and cache is not None:
        raise InputError("--cache keeps activations of the model without an edit, which --sequential does not read")
    targets = choose_targets(source.model, options)
    find_output_projections(source.model, targets)
    tokenized = _tokenized(source.model, tokenizer, demonstrations, options)
    logger.debug(
        "reading %d places over %d demonstrations, %s",
        len(targets),
        len(tokenized),
        "as a whole" if in_memory else "by layer",
    )
    order = processing_order([PromptedCompletions(one.prompt, (one.positive, one.negative)) for one in tokenized])
    share = processes.share(order)
    fitters = _Fitters(targets, options, processes)
    if cache is not None:
        kept = ActivationCache(Path(cache), capture_key(source.identity(), tokenized, options.capture))
        _fill(kept, source, tokenized, share, targets, options.capture, progress)
        own = set(share)
        ordered = [index for index in order if index in own]
        for target in targets:
            batches = (ordered[start : start + _CACHED_ROWS] for start in range(0, len(ordered), _CACHED_ROWS))
            fitters.settle(target, (kept.read(target, batch) for batch in batches))
    elif in_memory and not options.sequential:
        shared_out = [tokenized[index] for index in share]
        for _, batch in capture_batches(source.model, shared_out, targets, options.capture, progress):
            for target, activations in batch.items():
                fitters.update(target, activations)
        for target in targets:
            fitters.settle(target, ())
    else:
        capture_by_layer(
            source,
            [tokenized[index] for index in share],
            targets,
            options.capture,
            lambda target, batches: fitters.settle(target, (activations for _, activations in batches)),
            sequential=options.sequential,
            progress=progress,
        )
    logger.debug("%d spectra are known", len(fitters.settled))
    return fitters.settled


def _fill(
    cache: ActivationCache,
    source: LayerSource,
    tokenized: Sequence[TokenizedDemonstration],
    share: Sequence[int],
    targets: Sequence[Target],
    options: CaptureOptions,
    progress: Callable[[int], None] | None,
) -> None:
    """Captures into a cache what it lacks of some targets and of a share of the demonstrations."""
    wanted, lacking = cache.missing(targets, share)
    if progress is not None:
        progress(len(share) - len(lacking))
    if not lacking:
        return
    demonstrations = [tokenized[index] for index in lacking]
    if isinstance(source, ModelInMemory):
        for indices, batch in capture_batches(source.model, demonstrations, wanted, options, progress):
            cache.add([lacking[index] for index in indices], batch)
        return

    def keep(target: Target, batches: Iterable[tuple[Sequence[int], Activations]]) -> None:
        for indices, activations in batches:
            cache.add([lacking[index] for index in indices], {target: activations})

    capture_by_layer(source, demonstrations, wanted, options, keep, sequential=False, progress=progress)


class _Fitters:
    """What turns the activations of each target into its spectrum."""

    def __init__(self, targets: Sequence[Target], options: FitOptions, processes: Processes) -> None:
        feature = FeatureFunction(options.feature_function, options.length_scale)
        self.settled: dict[Target, LayerSpectrum] = {}
        self._options, self._processes = options, processes
        self._fitters = {target: SpectrumFitter(options.center, feature) for target in targets}

    def update(self, target: Target, activations: Activations) -> None:
        try:
            self._fitters[target].update(activations)
        except InputError as error:
            raise InputError(f"layer {target.layer}, {target.component}: {error}") from error

    def settle(self, target: Target, batches: Iterable[Activations]) -> LayerEdit | None:
        """Makes the spectrum of a target, and the edit that later ones are captured with in a sequential fit."""
        for activations in batches:
            self.update(target, activations)
        self.settled[target] = self._processes.finish(self._fitters.pop(target))
        return build_layer_edit(self.settled[target], self._options.edit) if self._options.sequential else None


def source_of(model: PreTrainedModel | LayerSource) -> LayerSource:
    """A model in memory is one source of layers among others."""
    return ModelInMemory(model) if isinstance(model, nn.Module) else model


def _tokenized(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    demonstrations: Sequence[Demonstration],
    options: FitOptions,
) -> tuple[TokenizedDemonstration, ...]:
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    tokenized = tokenize(demonstrations, tokenizer, template=options.template, context_length=context)
    if options.capture.neutral == "generated" and context is not None:
        _check_room(tokenized, options.capture.neutral_tokens, context)
    return tokenized


def _check_room(tokenized: Sequence[TokenizedDemonstration], new_tokens: int, context: int) -> None:
    """Raises InputError if a prompt and the continuation to be generated are longer than the model's context."""
    for one in tokenized:
        if len(one.prompt) + new_tokens > context:
            raise InputError(
                f"{one.source}: its prompt has {len(one.prompt)} tokens and leaves no room for a continuation of "
                f"{new_tokens} in a context of {context}. Lower --neutral-tokens, shorten the prompt or remove the row."
            )
