"""What a search makes its edits from: the kinds of edits that base and format can hold, and their statistics."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace

from sea_export.capture.opened_model import OpenedModel
from sea_export.demonstrations.demonstration import Demonstration
from sea_export.errors import InputError
from sea_export.evaluation.benchmark import Progress
from sea_export.fitting.bank import StatisticsBank
from sea_export.fitting.layer_choice import choose_targets
from sea_export.model.layer_list import LayerChoice
from sea_export.options import (
    CENTERS,
    FORMS,
    GRADIENT_METHODS,
    METHODS,
    SITES,
    TARGETS,
    CaptureOptions,
    ExportOptions,
    FitOptions,
)
from sea_export.saving import locate_fit
from sea_export.tuning.search_space import Kind, kinds_of
from sea_export.tuning.tuning_options import TuneOptions

__all__ = ["default_edit", "searched_kinds", "searched_statistics"]

logger = logging.getLogger(__name__)


def default_edit(options: TuneOptions, layer_count: int) -> FitOptions:
    """The default edit, with the number of its layers instead of their share.

    Args:
        options: how demonstrations become text, and how they are captured.
        layer_count: the number of layers of the model.
    """
    default = FitOptions()
    count = len(LayerChoice.parse(default.layers, layer_count).candidates)
    capture = CaptureOptions(batch_tokens=options.batch_tokens, seed=options.seed)
    return replace(default, layers=f"last:{count}", template=options.template, capture=capture)


def searched_kinds(opened: OpenedModel, options: TuneOptions, export: ExportOptions) -> tuple[Kind, ...]:
    """The kinds of edits that are searched: as asked for, or all that the base and the format can hold.

    Args:
        opened: the base.
        options: what is asked for.
        export: how the chosen edit will be baked.

    Raises:
        InputError: they can hold none, or not what was asked for.
    """
    return kinds_of(options.methods or METHODS, options.forms or FORMS, _centers(opened, options, export))


def searched_statistics(
    opened: OpenedModel,
    demonstrations: Sequence[Demonstration],
    kinds: Sequence[Kind],
    options: TuneOptions,
    progress: Progress,
) -> StatisticsBank:
    """The statistics of everything that is searched.

    Args:
        opened: the base.
        demonstrations: those to fit on.
        kinds: from `searched_kinds`.
        options: which sites and targets are searched, and how demonstrations are captured.
        progress: shows the progress.

    Raises:
        InputError: the model or a demonstration is not usable.
    """
    start = default_edit(options, 1)
    sites = (options.sites or SITES) if any(kind.reads_activations for kind in kinds) else ()
    gradients = _gradients(kinds, start)
    passes = len(sites) + (gradients is not None)
    # Small gradients are lost in half precision.
    precise = opened.in_full_precision() if gradients is not None and opened.dtype is None else nullcontext()
    with _reading_and_fitting(progress, len(demonstrations) * passes) as advance, precise:
        return StatisticsBank(
            opened.whole_model,
            opened.base.tokenizer,
            demonstrations,
            start,
            sites=sites,
            targets=options.targets or TARGETS,
            gradients=gradients,
            progress=advance,
        )


@contextmanager
def _reading_and_fitting(progress: Progress, demonstrations: int) -> Iterator[Callable[[int], None]]:
    """A stage that counts demonstrations, and one without a number for what follows when all of them are read."""
    with ExitStack() as stages:
        tell = stages.enter_context(progress("Reading demonstrations", demonstrations))
        missing = demonstrations

        def advance(count: int) -> None:
            nonlocal missing
            tell(count)
            missing -= count
            if missing == 0:
                stages.pop_all().close()
                stages.enter_context(progress("Fitting", 0))

        yield advance


def _centers(opened: OpenedModel, options: TuneOptions, export: ExportOptions) -> tuple[str, ...]:
    """How edits may be centred: as asked for, or in every way that the base and the format can hold.

    Raises InputError, before anything is computed, if they can hold none, or not what was asked for.
    """

    def check(center: str) -> None:
        for target in options.targets or TARGETS:
            fit = FitOptions(layers="all", target=target, center=center)
            locate_fit(opened.base, choose_targets(opened.base.skeleton, fit), fit, export)

    for center in options.centers or ("linear",):
        check(center)
    if options.centers:
        return options.centers
    try:
        check("affine")
    except InputError as error:
        logger.info("No affine edit is tried. %s", error)
        return tuple(center for center in CENTERS if center != "affine")
    return CENTERS


def _gradients(kinds: Sequence[Kind], start: FitOptions) -> FitOptions | None:
    """The gradient method and form that need all that those of `kinds` need; None if there are none."""
    searched = [kind for kind in kinds if kind.method in GRADIENT_METHODS]
    if not searched:
        return None
    natural = any(kind.method == "natural-gradient" for kind in searched)
    maps = any(kind.form != "bias" for kind in searched)
    return FitOptions(
        method="natural-gradient" if natural else "gradient",
        form="linear" if maps else "bias",
        template=start.template,
        capture=start.capture,
    )
