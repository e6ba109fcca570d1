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
from sea_export.fitting.layer_choice import LayerChoice
from sea_export.model.architecture import context_length
from sea_export.model.targets import Target
from sea_export.options import CaptureOptions, FitOptions

__all__ = ["edited_activations"]


def edited_activations(
    edit: SpectralEdit, opened: OpenedModel, demonstrations: Sequence[Demonstration], layers: str | None
) -> Mapping[Target, Activations]:
    """Captures the activations of demonstrations at edited vectors.

    They are read as the fit read them, except for the site: it is always the vector that the edit changes.

    Args:
        edit: the edit.
        opened: the model that it was fitted on.
        demonstrations: those to capture.
        layers: which layers, such as `18,29`; None for the first, the middle and the last edited target.

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
    """The targets to draw: of some layers, or the first, the middle and the last edited one."""
    targets = tuple(target for target in edit.targets if target.in_decoder)
    if not targets:
        raise InputError("--plot-activations: the edit changes no decoder layer, so that there is nothing to draw.")
    if layers is None:
        return tuple(dict.fromkeys((targets[0], targets[len(targets) // 2], targets[-1])))
    chosen = LayerChoice.parse(layers, targets[-1].layer + 1).candidates
    found = tuple(target for target in targets if target.layer in chosen)
    if not found:
        edited = ", ".join(dict.fromkeys(str(target.layer) for target in targets))
        raise InputError(f"--plot-layers: {layers} has no layer that the edit edits. Choose from {edited}.")
    return found
