"""Activations of demonstrations at the vectors that an edit changes, for a picture of what the edit does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sea_export.capture.activations import Activations
from sea_export.capture.in_memory import capture
from sea_export.capture.opened_model import OpenedModel
from sea_export.demonstrations.demonstration import Demonstration, LoadedDemonstrations
from sea_export.demonstrations.tokenize import tokenize
from sea_export.edit.spectral_edit import SpectralEdit
from sea_export.errors import InputError
from sea_export.files.records import from_record
from sea_export.fitting.fit_base import usable_by
from sea_export.model.architecture import context_length
from sea_export.model.layer_list import layers_of_edit
from sea_export.model.targets import Target
from sea_export.options import CaptureOptions, FitOptions

__all__ = ["edited_activations"]

_SHOWN_TARGETS = 3


def edited_activations(
    edit: SpectralEdit, opened: OpenedModel, demonstrations: Sequence[Demonstration], layers: str | None
) -> Mapping[Target, Activations]:
    """Captures the activations of demonstrations at edited vectors.

    They are read as the fit read them, except for the site: it is always the vector that the edit changes.

    Args:
        edit: the edit.
        opened: the model that it was fitted on.
        demonstrations: those to capture.
        layers: which layers, such as `18,29`; None for the three targets that the edit changes most.

    Raises:
        InputError: the edit edits none of the layers, or is an edit of another model.
    """
    targets = _targets(edit, layers)
    options = edit.provenance.get("options")
    fit = FitOptions() if options is None else from_record(FitOptions, options)
    read = fit.capture
    how = CaptureOptions(
        position=read.position, neutral=read.neutral, neutral_tokens=read.neutral_tokens, seed=read.seed
    )
    if isinstance(demonstrations, LoadedDemonstrations):
        demonstrations = usable_by(opened.base, demonstrations, fit.template)
    tokenized = tokenize(
        demonstrations,
        opened.base.tokenizer,
        template=fit.template,
        context_length=context_length(opened.base.config),
    )
    with edit.apply(opened.whole_model):  # refuses an edit of another model
        pass
    return capture(opened.whole_model, tokenized, targets, how)


def _targets(edit: SpectralEdit, layers: str | None) -> tuple[Target, ...]:
    """The targets to draw: of some layers, or the three whose relative change is the largest."""
    targets = tuple(target for target in edit.targets if target.in_decoder)
    if not targets:
        raise InputError(
            "--plot-activations: the edit changes the output of no block of a decoder layer, so that there is nothing "
            "to draw. Leave the option out."
        )
    if layers is None:
        changes = {target: max(one.relative_change or 0 for one in edit.layers[target]) for target in targets}
        return tuple(sorted(sorted(targets, key=changes.__getitem__, reverse=True)[:_SHOWN_TARGETS]))
    chosen = layers_of_edit(sorted({target.layer for target in targets}), layers, "--plot-layers")
    return tuple(target for target in targets if target.layer in chosen)
