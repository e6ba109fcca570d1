"""`sea_export.fit_and_save`."""

from __future__ import annotations

from pathlib import Path

from sea_export.capture.progress_callback import ProgressCallback, progress_of
from sea_export.demonstrations.demonstration_options import DemonstrationOptions
from sea_export.demonstrations.load import DemonstrationData
from sea_export.edit.summary import log_warnings
from sea_export.effect.effect_options import EffectOptions
from sea_export.export.formats import export_format
from sea_export.export.output import check_beside, check_output
from sea_export.fitting.layer_choice import choose_targets
from sea_export.hub.push import SavedAndPushed, prepare_push, push
from sea_export.interface.examining import read_data
from sea_export.interface.loaded_base import LoadedBase, opened_base
from sea_export.interface.measured_fit import measured_fit, split_demonstrations
from sea_export.model.run_options import RunOptions, check_conversion
from sea_export.options import ExportOptions, FitOptions
from sea_export.saving import check_room_for, locate_fit, save_checkpoint

__all__ = ["fit_and_save"]

_RUN, _DATA, _FIT, _EFFECT, _EXPORT = (
    RunOptions(),
    DemonstrationOptions(),
    FitOptions(),
    EffectOptions(),
    ExportOptions(),
)


def fit_and_save(
    model: str | Path | LoadedBase,
    output: str | Path,
    demonstrations: DemonstrationData = DemonstrationOptions.demonstrations,
    *,
    data: DemonstrationOptions = _DATA,
    fit: FitOptions = _FIT,
    effect: EffectOptions = _EFFECT,
    run: RunOptions = _RUN,
    export: ExportOptions = _EXPORT,
    cache: str | Path | None = None,
    push_to: str | None = None,
    public: bool = False,
    progress: ProgressCallback | None = None,
) -> SavedAndPushed:
    """Fits an edit as strong as the damage budget allows, bakes it into a checkpoint, and verifies that.

    Args:
        model: a Hub id, a directory or a `.gguf` file, or a base that `load` has opened.
        output: the checkpoint to write.
        demonstrations: see `sea_export.fit`.
        data: how a file or a dataset of demonstrations is read.
        fit: the options of the fit.
        effect: the strength or the damage budget, and what is measured.
        run: how the base is opened, if it is not open.
        export: how the edit is baked.
        cache: a directory that keeps captured activations.
        push_to: a repository of the Hub to which the output is pushed; None for none.
        public: whether everybody may see a new repository.
        progress: told a stage, how much of it is done, and how much there is to do.

    Raises:
        InputError: an option, the demonstrations, the model or the output is not usable.
        SeaExportError: writing, the verification or the push failed.
    """
    place, kept, shown = Path(output), None if cache is None else Path(cache), progress_of(progress)
    format = export_format(export.format)
    effect.check(fit)
    format.check_options(fit, export)
    check_conversion(dequantize=run.dequantize, requantize=export.requantize)
    check_output(place, overwrite=export.overwrite)
    check_beside(place, kept)
    effect.check_texts()
    read = read_data(demonstrations, data, fit.capture.seed)
    with opened_base(model, run, place.resolve().parent, progress) as opened:
        split = split_demonstrations(opened, demonstrations, read, fit, effect)
        check_room_for(opened.base, place, export)
        targets = choose_targets(opened.base.skeleton, fit)
        located = locate_fit(opened.base, targets, fit, export)
        if push_to is not None:
            prepare_push(opened.base, format, push_to, public=public)
        reading = shown("Reading demonstrations", len(split.fitted))
        edit = measured_fit(opened, split, fit, effect, reading, shown, targets=targets, cache=kept)
        assert edit is not None
        log_warnings(edit.summary)
        saved = save_checkpoint(
            *(edit, opened.base, place, export),
            layerwise=opened.layerwise,
            located=located,
            model=opened.model if not isinstance(model, LoadedBase) else None,  # verifying may change its dtype
            progress=shown,
        )
    return SavedAndPushed(saved, None if push_to is None else push(place, push_to, public=public, progress=progress))
