"""From demonstrations to statistics: which layers are read, by which way of capture, and what is kept of it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sea_export.capture.activations import Activations
from sea_export.capture.batching import PromptedCompletions, processing_order
from sea_export.capture.cache import ActivationCache, capture_key
from sea_export.capture.in_memory import capture_batches
from sea_export.capture.layerwise import LayerSource, ModelInMemory, capture_by_layer, layer_source
from sea_export.demonstrations.demonstration import Demonstration
from sea_export.demonstrations.tokenize import TokenizedDemonstration, tokenize
from sea_export.edit.layer_edit import LayerEdit
from sea_export.errors import InputError
from sea_export.fitting.activation_statistics import Statistic
from sea_export.fitting.distributed import ALONE, Processes
from sea_export.fitting.edit_method import FinishedStatistics, activation_method, edit_method, errors_of
from sea_export.fitting.gradient_cache import GradientCache
from sea_export.fitting.gradient_statistics import GradientStatistics
from sea_export.fitting.layer_choice import choose_targets
from sea_export.model.architecture import OutputProjection, context_length, find_output_projections, hidden_size
from sea_export.model.targets import Target
from sea_export.options import CaptureOptions, EditOptions, FitOptions

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["check_enough", "collect_statistics", "demonstrations_to_fit"]

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
    projections: Sequence[OutputProjection] | None = None,
    cache: Path | str | None = None,
    processes: Processes = ALONE,
) -> dict[Target, FinishedStatistics]:
    """Finished statistics of all layers that `options.layers` names (all of them, for `signature:K`).

    Args:
        model: see `sea_export.fit`.
        tokenizer: its tokenizer.
        demonstrations: at least two.
        options: `edit` is used only by a sequential fit.
        progress: told the number of demonstrations that each batch has finished.
        projections: the output projections of the targets that `options` choose; they are searched for if None.
        cache: see `sea_export.fit`.
        processes: those that share the demonstrations.

    Raises:
        InputError: see `sea_export.fit`.
        SeaExportError: another process has ended.
    """
    processes.check_enough(len(demonstrations))
    needs = edit_method(options.method).needed_statistics(options)
    source = layer_source(model)
    in_memory = isinstance(source, ModelInMemory)
    if options.sequential and cache is not None:
        raise InputError(
            "--cache: it keeps activations of the model without an edit, which --sequential does not read. Leave out "
            "one of the two."
        )
    tokenized = demonstrations_to_fit(source.model, tokenizer, demonstrations, options, in_memory=in_memory)
    if projections is None:
        projections = find_output_projections(source.model, choose_targets(source.model, options))
    targets = [one.target for one in projections]
    logger.debug(
        "collecting %s of %d targets over %d demonstrations, %s.",
        " and ".join(sorted(statistic.value for statistic in needs)),
        len(targets),
        len(tokenized),
        "with the whole model in memory" if in_memory else "layer by layer",
    )
    if Statistic.MARGIN_GRADIENTS in needs:
        if processes.count > 1:
            raise InputError(f"--method: {options.method} runs in one process. Start one, or choose --method spectral.")
        gradients = GradientCache.of(cache, source)
        margins = gradients.margins(source.model, tokenized, projections, options, progress)
        if Statistic.NEUTRAL_GRADIENTS not in needs:
            return {target: GradientStatistics.of(one, None) for target, one in margins.items()}
        neutrals = gradients.neutrals(source.model, tokenizer, projections, options)
        return {target: GradientStatistics.of(one, neutrals[target]) for target, one in margins.items()}
    order = processing_order([PromptedCompletions(one.prompt, (one.positive, one.negative)) for one in tokenized])
    share = processes.share(order)
    collected = _Collected(targets, options, processes)
    if cache is not None:
        key = capture_key(source.identity(), tokenized, options.capture)
        kept = ActivationCache(Path(cache), key, projections[0].size)
        _fill(kept, source, tokenized, share, projections, options.capture, progress)
        own = set(share)
        ordered = [index for index in order if index in own]
        for target in targets:
            batches = (ordered[start : start + _CACHED_ROWS] for start in range(0, len(ordered), _CACHED_ROWS))
            collected.finish(target, (kept.read(target, batch) for batch in batches))
    elif in_memory and not options.sequential:
        own_demonstrations = [tokenized[index] for index in share]
        for _, batch in capture_batches(source.model, own_demonstrations, projections, options.capture, progress):
            for target, activations in batch.items():
                collected.update(target, activations)
        logger.debug("%d demonstrations are captured.", len(share))
        for target in targets:
            collected.finish(target, ())
    else:
        capture_by_layer(
            source,
            [tokenized[index] for index in share],
            projections,
            options.capture,
            lambda target, batches: collected.finish(target, (activations for _, activations in batches)),
            sequential=options.sequential,
            progress=progress,
        )
    logger.debug("statistics of %d targets are finished.", len(collected.finished))
    return collected.finished


def demonstrations_to_fit(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    demonstrations: Sequence[Demonstration],
    options: FitOptions,
    *,
    in_memory: bool,
) -> tuple[TokenizedDemonstration, ...]:
    """The demonstrations of a fit as token ids, after the checks that need no weights.

    Args:
        model: the model, or its skeleton.
        tokenizer: its tokenizer.
        demonstrations: those to fit on.
        options: those of the fit.
        in_memory: whether the whole model is in memory at the same time.

    Raises:
        InputError: there are too few demonstrations, also for the ranks of the edit, they cannot be tokenized, a model
            of which one layer at a time is in memory cannot be fitted so, or options contradict one another.
    """
    check_enough(demonstrations)
    if options.method == "spectral":
        _check_ranks(options.edit, min(len(demonstrations) - (options.center != "off"), hidden_size(model.config)))
    if options.capture.neutral == "generated" and not in_memory:
        raise InputError(
            "--neutral: generated needs all layers for every token, and they are not in memory together. Choose "
            "--neutral prompt."
        )
    if Statistic.MARGIN_GRADIENTS in edit_method(options.method).needed_statistics(options):
        if not in_memory:
            raise InputError(
                f"--method: {options.method} runs the whole model backward, which is not in memory together. Choose "
                "--method spectral, or --no-layerwise on a machine with more memory."
            )
        if options.sequential:
            raise InputError(f"--sequential: --method {options.method} reads no activations. Leave it out.")
    return _tokenized(model, tokenizer, demonstrations, options)


def _check_ranks(options: EditOptions, directions: int) -> None:
    """Refuses ranks above the number of directions that demonstrations can span at most."""
    for option, rank in (("--positive-rank", options.positive_rank), ("--negative-rank", options.negative_rank)):
        if rank is not None and rank > directions:
            raise InputError(
                f"{option}: {rank} is more than the {directions} directions that the demonstrations span. Lower it, or "
                "give more demonstrations."
            )


def check_enough(demonstrations: Sequence[Demonstration]) -> None:
    """Raises InputError if there are fewer than two demonstrations."""
    if len(demonstrations) < 2:
        raise InputError(f"--demonstrations: {len(demonstrations)} are too few for a fit. Give at least 2.")


def _fill(
    cache: ActivationCache,
    source: LayerSource,
    tokenized: Sequence[TokenizedDemonstration],
    share: Sequence[int],
    projections: Sequence[OutputProjection],
    options: CaptureOptions,
    progress: Callable[[int], None] | None,
) -> None:
    """Captures into a cache what it lacks of some targets and of a share of the demonstrations."""
    incomplete, lacking = cache.missing([one.target for one in projections], share)
    if progress is not None:
        progress(len(share) - len(lacking))
    if not lacking:
        return
    demonstrations = [tokenized[index] for index in lacking]
    wanted = [one for one in projections if one.target in incomplete]
    if isinstance(source, ModelInMemory):
        for indices, batch in capture_batches(source.model, demonstrations, wanted, options, progress):
            cache.add([lacking[index] for index in indices], batch)
        return

    def keep(target: Target, batches: Iterable[tuple[Sequence[int], Activations]]) -> None:
        for indices, activations in batches:
            cache.add([lacking[index] for index in indices], {target: activations})

    capture_by_layer(source, demonstrations, wanted, options, keep, sequential=False, progress=progress)


class _Collected:
    """An accumulator for each target, and the finished statistics of those targets that were read."""

    def __init__(self, targets: Sequence[Target], options: FitOptions, processes: Processes) -> None:
        self.finished: dict[Target, FinishedStatistics] = {}
        self._method, self._options, self._processes = activation_method(options.method), options, processes
        self._accumulators = {target: self._method.accumulator(options) for target in targets}

    def update(self, target: Target, activations: Activations) -> None:
        with errors_of(target):
            self._accumulators[target].update(activations)

    def finish(self, target: Target, batches: Iterable[Activations]) -> LayerEdit | None:
        """Finishes a target after some more batches.

        Returns:
            the edit that later targets are captured with, in a sequential fit; else None.
        """
        for activations in batches:
            self.update(target, activations)
        statistics = self._processes.finish(self._accumulators.pop(target))
        self.finished[target] = statistics
        if not self._options.sequential:
            return None
        return self._method.layer_edits({target: statistics}, self._options)[target]


def _tokenized(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    demonstrations: Sequence[Demonstration],
    options: FitOptions,
) -> tuple[TokenizedDemonstration, ...]:
    context = context_length(model.config)
    tokenized = tokenize(demonstrations, tokenizer, template=options.template, context_length=context)
    if options.capture.neutral == "generated" and context is not None:
        _check_context(tokenized, options.capture.neutral_tokens, context)
    return tokenized


def _check_context(tokenized: Sequence[TokenizedDemonstration], new_tokens: int, context: int) -> None:
    """Raises InputError if a prompt and the continuation to be generated are longer than the model's context."""
    for one in tokenized:
        if len(one.prompt) + new_tokens > context:
            raise InputError(
                f"{one.source}: its prompt has {len(one.prompt)} tokens and leaves no room for a continuation of "
                f"{new_tokens} in a context of {context}. Lower --neutral-tokens, shorten the prompt or remove the row."
            )
