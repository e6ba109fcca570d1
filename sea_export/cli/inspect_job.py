"""What `inspect --plot-activations` does."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sea_export.capture.in_memory import capture
from sea_export.cli import jobs
from sea_export.demonstrations.demonstration_options import DemonstrationOptions
from sea_export.demonstrations.tokenize import tokenize
from sea_export.edit.spectral_edit import SpectralEdit
from sea_export.errors import InputError
from sea_export.evaluation.evaluation_options import InspectOptions
from sea_export.evaluation.plots import plot_activations
from sea_export.fitting.layer_choice import LayerChoice
from sea_export.model.architecture import context_length
from sea_export.model.run_options import RunOptions
from sea_export.model.targets import Target
from sea_export.options import CaptureOptions, FitOptions

__all__ = ["draw_activations"]


def draw_activations(
    edit: SpectralEdit, file: Path, inspect: InspectOptions, data: DemonstrationOptions, run: RunOptions
) -> None:
    """Captures the demonstrations' activations where the edit is applied, and draws them.

    They are read as the fit read them, but for the site: always at the vector that is edited.
    """
    assert inspect.model is not None
    targets = _targets(edit, inspect.plot_layers)
    demonstrations = jobs.read_demonstrations(data, inspect.seed)
    options: Mapping[str, Any] = edit.provenance.get("options") or {}
    fitted: Mapping[str, Any] = options.get("capture") or {}
    names = ("position", "neutral", "neutral_tokens", "seed")
    how = CaptureOptions(**{name: fitted[name] for name in names if name in fitted})
    with jobs.opened_model(inspect.model, run, file) as opened:
        context = context_length(opened.base.config)
        template = options.get("template", FitOptions.template)
        tokenized = tokenize(demonstrations, opened.base.tokenizer, template=template, context_length=context)
        with edit.apply(opened.whole_model):  # only to see that the edit is one of this model
            pass
        activations = capture(opened.whole_model, tokenized, targets, how)
    plot_activations(activations, edit, file)


def _targets(edit: SpectralEdit, layers: str | None) -> tuple[Target, ...]:
    """The places to draw: of some layers, or the first, the middle and the last that are edited."""
    if layers is None:
        places = edit.targets
        return tuple(dict.fromkeys((places[0], places[len(places) // 2], places[-1])))
    chosen = LayerChoice.parse(layers, edit.targets[-1].layer + 1).candidates
    places = tuple(target for target in edit.targets if target.layer in chosen)
    if not places:
        raise InputError(f"--plot-layers {layers}: the edit edits none of them")
    return places
