"""Fitting an edit of an opened base, which the edit then names."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

from sea_export.capture.cache_folder import cached_bytes
from sea_export.capture.opened_model import OpenedModel
from sea_export.demonstrations.demonstration import Demonstration, LoadedDemonstrations
from sea_export.demonstrations.usable import usable_demonstrations
from sea_export.edit.spectral_edit import SpectralEdit
from sea_export.fitting.activation_statistics import Statistic
from sea_export.fitting.distributed import ALONE, Processes
from sea_export.fitting.edit_method import edit_method
from sea_export.fitting.fit import Fit, fit_any_strength
from sea_export.fitting.layer_choice import choose_targets, left_out_note
from sea_export.model.architecture import context_length
from sea_export.model.base import Base
from sea_export.model.targets import Target
from sea_export.options import FitOptions

__all__ = ["fit_base", "usable_by", "with_base", "with_weight_digests"]

logger = logging.getLogger(__name__)


def fit_base(
    opened: OpenedModel,
    demonstrations: Sequence[Demonstration],
    options: FitOptions,
    progress: Callable[[int], None] | None = None,
    *,
    targets: Sequence[Target] | None = None,
    cache: Path | None = None,
    processes: Processes = ALONE,
) -> Fit:
    """Fits edits of a base, which they then name.

    Args:
        opened: the base.
        demonstrations: at least two.
        options: those of the fit.
        progress: told the number of demonstrations that each batch has finished.
        targets: what `choose_targets` gave, if that was asked before.
        cache: a directory that keeps captured activations.
        processes: those that share the demonstrations.

    Raises:
        InputError: see `sea_export.fitting.fit.fit`.
        SeaExportError: another process has ended.
    """
    if processes.is_first:
        opened.base.files.begin_digests(opened.base.checkpoint.weight_files)
    if targets is None:
        targets = choose_targets(opened.base.skeleton, options)
    if note := left_out_note(opened.base.skeleton, options, targets):
        logger.info("%s", note)
    # Backward passes are the longest part of such a fit, and small gradients are lost in half precision.
    by_gradients = Statistic.MARGIN_GRADIENTS in edit_method(options.method).needed_statistics(options)
    with opened.in_full_precision() if by_gradients and opened.dtype is None else nullcontext():
        fit = fit_any_strength(
            opened.model,
            opened.base.tokenizer,
            demonstrations,
            options,
            progress,
            projections=opened.base.output_projections(targets),
            cache=cache,
            processes=processes,
        )
    if cache is not None:
        logger.info("%s: it keeps %.1f MB of activations and gradients.", cache, cached_bytes(cache) / 1e6)
    return replace(fit, provenance={**fit.provenance, "base": _named(opened.base)})


def usable_by(base: Base, demonstrations: LoadedDemonstrations, template: str) -> Sequence[Demonstration]:
    """The demonstrations that a base can read, found out before its weights are loaded.

    Args:
        base: the base.
        demonstrations: as they were loaded. Their origin tells whether those that cannot be used are left out.
        template: how a prompt becomes text.

    Raises:
        InputError: one of them cannot be used, and is not to be left out; or fewer than two remain.
    """
    skip, context = demonstrations.origin.skip_bad_rows, context_length(base.config)
    return usable_demonstrations(demonstrations, base.tokenizer, template=template, context_length=context, skip=skip)


def with_base(edit: SpectralEdit, base: Base) -> SpectralEdit:
    """The edit with the name and the revision of the base that it was fitted on."""
    return replace(edit, provenance={**edit.provenance, "base": _named(base)})


def with_weight_digests(edit: SpectralEdit, base: Base) -> SpectralEdit:
    """The edit with name, revision and digests of the weights of the base that it was fitted on.

    Raises:
        SeaExportError: a file of the base has changed since it was opened.
    """
    base.files.check()
    named = {**_named(base), "weights": dict(base.weight_digests)}
    return replace(edit, provenance={**edit.provenance, "base": named})


def _named(base: Base) -> dict[str, str | None]:
    return {"name": base.name, "revision": base.revision}
