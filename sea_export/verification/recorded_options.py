"""The options of a recorded run, so that another run can begin from them."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from sea_export.errors import InputError
from sea_export.export.manifest import MANIFEST
from sea_export.verification.recorded_run import RecordedFit, RecordedRun

__all__ = ["recorded_options"]

_OF_THE_DEMONSTRATIONS = ("prompt_field", "positive_field", "negative_field", "limit", "skip_bad_rows")


def recorded_options(run: RecordedRun) -> dict[str, object]:
    """The options of `fit-and-save` that a run had, but for those of the machine, of paths and of code.

    Args:
        run: what a manifest says.

    Returns:
        Field of the option classes -> value. The demonstrations of a local file have its name without its path, because
        the manifest does not have it either.

    Raises:
        InputError: the run has several fits, or a part of one, or demonstrations that were changed after reading, or
            the manifest was changed.
    """
    if len(run.fits) != 1:
        raise InputError(
            f"{MANIFEST}: it tells of {len(run.fits)} fits, which no single command has. Repeat the run with "
            "sea-export reproduce."
        )
    if "targets" in run.edit:
        raise InputError(
            f"{MANIFEST}: only some layers of its edit were baked, which no single command does. Repeat the run with "
            "sea-export reproduce."
        )
    fit = run.fits[0]
    if fit.origin is None:
        raise InputError(
            f"{MANIFEST}: its demonstrations were a list in memory, which no option names. Repeat the run with "
            "sea-export reproduce --demonstrations."
        )
    return {
        **_own(fit.options),
        **_own(fit.options.capture),
        **_own(fit.options.edit),
        **_own(run.export),
        "demonstrations": fit.origin.source,
        **{name: getattr(fit.origin, name) for name in _OF_THE_DEMONSTRATIONS},
        **_strength(fit, fit.origin.held_out),
    }


def _own(options: Any) -> dict[str, object]:
    """The fields of an option class that are options."""
    return {item.name: getattr(options, item.name) for item in fields(options) if "help" in item.metadata}


def _strength(fit: RecordedFit, held_out: float) -> dict[str, object]:
    strength = fit.options.edit.strength
    if fit.effect is None:
        return {"measure": False, "strength": strength}
    max_kl, searched = fit.effect.get("max_kl"), fit.effect.get("searched")
    if not isinstance(max_kl, float) or not isinstance(searched, bool):
        raise InputError(
            f"{MANIFEST}: it does not say how the strength of the edit was found. Give the manifest as it was written."
        )
    budget: dict[str, object] = {"measure": True, "max_kl": max_kl, "held_out": held_out}
    return budget if searched else {**budget, "strength": strength}
