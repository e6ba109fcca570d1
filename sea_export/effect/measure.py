"""From a fit to its edit: the strength within a damage budget, and what the edit does and costs.

What was measured goes into the provenance of the edit under `effect`, and from there into the manifest and the card.
"""

from __future__ import annotations

import logging
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from sea_export.capture.offloaded import StoredModel
from sea_export.capture.opened_model import OpenedModel
from sea_export.demonstrations.hold_out import HeldOut
from sea_export.demonstrations.neutral_text import load_texts
from sea_export.edit.spectral_edit import SpectralEdit
from sea_export.effect.effect_options import EffectOptions
from sea_export.effect.meters import LayerMeter, Meter, WholeMeter
from sea_export.effect.strength import StrengthStep, first_strength
from sea_export.evaluation.benchmark import Measurement, Progress, no_progress
from sea_export.evaluation.demonstration_margins import MARGIN, DemonstrationMargins
from sea_export.evaluation.report import make_reports
from sea_export.fitting.fit import Fit
from sea_export.model.architecture import context_length

__all__ = ["measured_edit"]

logger = logging.getLogger(__name__)

# The relative change of activations with which a search of the strength begins.
_FIRST_CHANGE = 0.1


def measured_edit(
    fit: Fit,
    opened: OpenedModel,
    demonstrations: HeldOut,
    options: EffectOptions,
    progress: Progress = no_progress,
) -> SpectralEdit:
    """The edit of a fit, with the strength that is given or searched, and with what was measured of it.

    Args:
        fit: the fit.
        opened: the base.
        demonstrations: how the demonstrations of the fit were split.
        options: the strength or the budget, and on what effect and damage are measured.
        progress: shows the progress.

    Raises:
        InputError: a text is not usable.
        SeaExportError: no strength is within the budget.
    """
    if not options.measure:
        return fit.edit(options.strength)
    logger.debug("measuring effect and damage.")
    with opened.in_full_precision():
        return _measured(fit, opened, demonstrations, options, progress)


def _measured(
    fit: Fit, opened: OpenedModel, demonstrations: HeldOut, options: EffectOptions, progress: Progress
) -> SpectralEdit:
    meter = _meter(fit, opened, options, progress)
    steps: tuple[StrengthStep, ...] = ()
    strength, start = options.strength, first_strength(_FIRST_CHANGE, fit.edit().relative_change)
    if strength is None and start is not None:
        steps, damage = meter.search(fit, options.max_kl, start)
        edit = fit.edit(steps[-1].strength)
    else:
        edit = fit.edit(strength)
        damage = meter.damage(edit)
    if damage.largest.value > options.max_kl:
        logger.warning(
            "--strength: %g costs a mean KL of %.3g from the base, which is above --max-kl %g.",
            _strength(edit),
            damage.largest.value,
            options.max_kl,
        )
    metrics = (damage.largest, *damage.metrics, damage.agreement)
    measurement = Measurement("damage", len(damage.agreement.rows), metrics)
    record: dict[str, Any] = {
        "max_kl": options.max_kl,
        "searched": options.strength is None,
        "neutral_text": options.neutral_text and Path(options.neutral_text).name,
        "damage": make_reports([measurement])[0].record(),
        "curve": [asdict(step) for step in steps],
        **_held_out(edit, fit, opened, demonstrations, meter),
    }
    return replace(edit, provenance={**edit.provenance, "effect": record})


def _meter(fit: Fit, opened: OpenedModel, options: EffectOptions, progress: Progress) -> Meter:
    texts, tokenizer, model = load_texts(options.neutral_text), opened.base.tokenizer, opened.model
    if isinstance(model, StoredModel):
        projections = opened.base.output_projections(fit.edit().targets)
        return LayerMeter(model, tokenizer, projections, texts, progress)
    return WholeMeter(model, tokenizer, texts, progress)


def _held_out(
    edit: SpectralEdit, fit: Fit, opened: OpenedModel, demonstrations: HeldOut, meter: Meter
) -> dict[str, Any]:
    """What is recorded of held-out demonstrations: their kinds, the effect on them, and its curve over the strength."""
    if not demonstrations.held_out:
        return {"held_out": None, "kinds": [], "effects": []}
    margins = DemonstrationMargins(demonstrations.held_out, fit.options.template, context_length(opened.base.config))
    strength = _strength(edit)
    before, half, after = meter.held_out(margins, [None, fit.trial_edit(strength / 2), edit])
    reports = make_reports([half], [before])[0], make_reports([after], [before])[0]
    return {
        "held_out": reports[-1].record(),
        "kinds": list(demonstrations.kinds),
        "effects": [
            {"strength": factor * strength, "margin": report.metric(MARGIN).difference}
            for factor, report in zip((0.5, 1.0), reports, strict=True)
        ],
    }


def _strength(edit: SpectralEdit) -> float:
    return float(edit.provenance["options"]["edit"]["strength"])
