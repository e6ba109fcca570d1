"""`sea_export.fit_and_measure`, and the measured fit that it shares with `fit_and_save` and with both commands."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from sea_export.capture.opened_model import OpenedModel
from sea_export.capture.progress_callback import Progress, ProgressCallback, progress_of
from sea_export.demonstrations.demonstration import LoadedDemonstrations
from sea_export.demonstrations.demonstration_options import DemonstrationOptions
from sea_export.demonstrations.hold_out import HeldOut, hold_out
from sea_export.demonstrations.load import DemonstrationData
from sea_export.edit.spectral_edit import SpectralEdit
from sea_export.edit.summary import log_warnings
from sea_export.effect.effect_options import EffectOptions
from sea_export.effect.measure import measured_edit
from sea_export.evaluation.example_answers import with_examples
from sea_export.fitting.distributed import ALONE, Processes
from sea_export.fitting.fit_base import fit_base, usable_by, with_weight_digests
from sea_export.interface.examining import read_data
from sea_export.interface.loaded_base import LoadedBase, opened_base
from sea_export.model.run_options import RunOptions
from sea_export.model.targets import Target
from sea_export.options import FitOptions

__all__ = ["fit_and_measure", "measured_fit", "split_demonstrations"]

_RUN, _DATA, _FIT, _EFFECT = RunOptions(), DemonstrationOptions(), FitOptions(), EffectOptions()


def fit_and_measure(
    model: str | Path | LoadedBase,
    demonstrations: DemonstrationData = DemonstrationOptions.demonstrations,
    *,
    data: DemonstrationOptions = _DATA,
    fit: FitOptions = _FIT,
    effect: EffectOptions = _EFFECT,
    run: RunOptions = _RUN,
    cache: str | Path | None = None,
    progress: ProgressCallback | None = None,
) -> SpectralEdit:
    """Fits an edit as strong as the damage budget allows, and measures it, as `sea-export fit` does.

    Args:
        model: a Hub id, a directory or a `.gguf` file, or a base that `load` has opened.
        demonstrations: see `sea_export.fit`.
        data: how a file or a dataset of demonstrations is read.
        fit: the options of the fit.
        effect: the strength or the damage budget, and what is measured.
        run: how the base is opened, if it is not open.
        cache: a directory that keeps captured activations.
        progress: told a stage, how much of it is done, and how much there is to do.

    Returns:
        The edit, which names its base. What was measured is in its provenance, and goes into the model card of what is
        made of it. `edit.save` writes it.

    Raises:
        InputError: an option, the demonstrations or the model is not usable.
        SeaExportError: no strength is within the budget.
    """
    effect.check(fit)
    effect.check_texts()
    read, shown = read_data(demonstrations, data, fit.capture.seed), progress_of(progress)
    with opened_base(model, run, Path(tempfile.gettempdir()), progress) as opened:
        split = split_demonstrations(opened, demonstrations, read, fit, effect)
        reading = shown("Reading demonstrations", len(split.fitted))
        edit = measured_fit(opened, split, fit, effect, reading, shown, cache=None if cache is None else Path(cache))
        assert edit is not None
        log_warnings(edit.summary)
        return with_weight_digests(edit, opened.base)


def split_demonstrations(
    opened: OpenedModel,
    source: DemonstrationData,
    read: LoadedDemonstrations,
    fit: FitOptions,
    effect: EffectOptions,
) -> HeldOut:
    """The demonstrations that a base can read, split into those to fit on and those to measure on.

    Args:
        opened: the base.
        source: where they come from.
        read: what was read from there.
        fit: the options of the fit.
        effect: what is measured.

    Raises:
        InputError: see `sea_export.fitting.fit_base.usable_by`.
    """
    usable = usable_by(opened.base, read, fit.template)
    # Rows in memory have no source from which a run could be repeated.
    known = usable if isinstance(source, (str, Path)) else tuple(usable)
    return hold_out(known, effect.held_out_share, fit.capture.seed)


def measured_fit(
    opened: OpenedModel,
    demonstrations: HeldOut,
    fit: FitOptions,
    effect: EffectOptions,
    reading: AbstractContextManager[Callable[[int], None]],
    progress: Progress,
    *,
    targets: tuple[Target, ...] | None = None,
    cache: Path | None = None,
    processes: Processes = ALONE,
) -> SpectralEdit | None:
    """Fits an edit of a base that is open, gives it its strength, and measures it.

    Args:
        opened: the base.
        demonstrations: those to fit on, and those to measure on.
        fit: the options of the fit.
        effect: the strength or the damage budget, and what is measured.
        reading: shows the progress of the fit; its value is told how many demonstrations are read.
        progress: shows the progress of the measurements.
        targets: what `choose_targets` gave, if that was asked before.
        cache: a directory that keeps captured activations.
        processes: those that share the demonstrations.

    Returns:
        The edit; None in all processes but the first, which have nothing more to do.

    Raises:
        InputError: see `fit_and_measure`.
        SeaExportError: see `fit_and_measure`; or another process has ended.
    """
    with reading as advance:
        fitted = fit_base(
            *(opened, demonstrations.fitted, fit, advance), targets=targets, cache=cache, processes=processes
        )
    if not processes.is_first:
        return None
    edit = measured_edit(fitted, opened, demonstrations, effect, progress)
    return with_examples(edit, opened, progress) if effect.measure else edit
