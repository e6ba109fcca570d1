"""`sea_export.tune`, and the search that it shares with the command."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sea_export.capture.opened_model import OpenedModel
from sea_export.capture.progress_callback import ProgressCallback, progress_of
from sea_export.demonstrations.demonstration import Demonstration, LoadedDemonstrations
from sea_export.demonstrations.demonstration_options import DemonstrationOptions
from sea_export.demonstrations.hold_out import HeldOut, hold_out
from sea_export.demonstrations.load import DemonstrationData
from sea_export.edit.spectral_edit import SpectralEdit
from sea_export.evaluation.benchmark import Progress
from sea_export.evaluation.example_answers import with_examples
from sea_export.evaluation.metrics import Metric
from sea_export.export.output import check_output
from sea_export.fitting.fit_base import usable_by
from sea_export.interface.examining import read_data
from sea_export.interface.loaded_base import LoadedBase, opened_base
from sea_export.model.run_options import RunOptions
from sea_export.options import ExportOptions
from sea_export.saving import SaveResult, check_room_for
from sea_export.tuning.search_files import check_files
from sea_export.tuning.trial import TrialResult
from sea_export.tuning.tune import Tuning, bake
from sea_export.tuning.tune import tune as search
from sea_export.tuning.tuning_options import TuneOptions
from sea_export.tuning.tuning_rows import TuningRows

if TYPE_CHECKING:
    from pandas import DataFrame

__all__ = ["TunedModel", "held_out_of", "search_and_bake", "tune"]

_RUN, _DATA, _EXPORT = RunOptions(), DemonstrationOptions(), ExportOptions()


@dataclass(frozen=True)
class TunedModel:
    """The result of `tune`: the search, and what was baked."""

    tuning: Tuning
    saved: SaveResult

    @property
    def edit(self) -> SpectralEdit:
        """The chosen edit. It names its base."""
        return self.saved.edit

    def to_dict(self) -> dict[str, Any]:
        """The search as plain JSON data."""
        return self.tuning.to_dict()

    def to_frame(self) -> DataFrame:
        """A row for each trial: see `Tuning.to_frame`."""
        return self.tuning.to_frame()

    def plot(self, file: Path | str) -> None:
        """Draws the trials: see `Tuning.plot`."""
        self.tuning.plot(file)


def tune(
    model: str | Path | LoadedBase,
    output: str | Path,
    demonstrations: DemonstrationData = DemonstrationOptions.demonstrations,
    *,
    benchmark: str | None = None,
    held_out: float = TuneOptions.held_out,
    metric: str | None = None,
    max_kl: float = TuneOptions.max_kl,
    text: str | None = None,
    trials: int = TuneOptions.trials,
    timeout: float | None = None,
    storage: Path | None = None,
    choosing: float = TuneOptions.choosing,
    method: Sequence[str] = (),
    form: Sequence[str] = (),
    target: Sequence[str] = (),
    site: Sequence[str] = (),
    center: Sequence[str] = (),
    pick: str = TuneOptions.pick,
    template: str = TuneOptions.template,
    batch_tokens: int = TuneOptions.batch_tokens,
    seed: int = TuneOptions.seed,
    data: DemonstrationOptions = _DATA,
    export: ExportOptions = _EXPORT,
    run: RunOptions = _RUN,
    progress: ProgressCallback | None = None,
) -> TunedModel:
    """Searches settings for the best score within a damage budget, and bakes the edit that was chosen.

    Args:
        model: a Hub id, a directory or a `.gguf` file, or a base that `load` has opened.
        output: the checkpoint to write.
        demonstrations: see `fit`.
        benchmark: what is to get better, see `evaluate`; None for demonstrations that are held out.
        held_out: without a benchmark, the share of the demonstrations that is measured and not fitted.
        metric: the metric that is to get better; None for the main one.
        max_kl: the damage budget: mean KL from the base in nats per token.
        text: passages for the damage; None for the built-in ones.
        trials: trials in all.
        timeout: begin no further trial after so many seconds.
        storage: the file that keeps the trials, from which a search with equal settings goes on; None keeps them in
            memory.
        choosing: the share of the rows to choose on; the others report.
        method: try these methods only.
        form: try these forms of gradient methods only.
        target: try these targets only.
        site: try these sites only.
        center: try these ways to centre only.
        pick: `best`, `knee`, or the number of a trial.
        template: `qa`, `primer`, `chat` or `none`: how demonstrations become text.
        batch_tokens: about how many tokens a forward pass computes.
        seed: seed of the search and of all samples.
        data: how a file or a dataset of demonstrations is read.
        export: how the chosen edit is baked.
        run: how the base is opened, if it is not open.
        progress: told a stage, how much of it is done, and how much there is to do.

    Raises:
        InputError: a setting, the demonstrations, the model or the output is not usable.
        SeaExportError: no trial stayed within the budget, or all that did are worse than the base.
    """
    options = TuneOptions(
        benchmark=benchmark,
        held_out=held_out,
        metric=metric,
        max_kl=max_kl,
        text=text,
        trials=trials,
        timeout=timeout,
        storage=storage,
        choosing=choosing,
        methods=tuple(method),
        forms=tuple(form),
        targets=tuple(target),
        sites=tuple(site),
        centers=tuple(center),
        pick=pick,
        template=template,
        batch_tokens=batch_tokens,
        seed=seed,
    )
    place, named = Path(output), None if isinstance(model, LoadedBase) else str(model)
    check_output(place, overwrite=export.overwrite)
    check_files(options, place, [named, text])
    read, shown = read_data(demonstrations, data, seed), progress_of(progress)
    with opened_base(model, run, place.resolve().parent, progress) as opened:
        return search_and_bake(opened, read, options, place, export, progress=shown, saving_progress=shown)


def search_and_bake(
    opened: OpenedModel,
    read: LoadedDemonstrations,
    options: TuneOptions,
    output: Path,
    export: ExportOptions,
    *,
    progress: Progress,
    saving_progress: Progress,
    tell: Callable[[TrialResult, Metric], None] = lambda result, base: None,
    found: Callable[[Tuning, TuningRows], None] = lambda tuning, rows: None,
    announce: Callable[[str], None] | None = None,
) -> TunedModel:
    """Searches settings of a base that is open, and bakes the edit that was chosen.

    Args:
        opened: the base.
        read: the demonstrations, in part to fit on and, without a benchmark, in part to measure on.
        options: those of the search.
        output: the checkpoint to write.
        export: how the chosen edit is baked.
        progress: shows the progress of the search.
        saving_progress: shows the progress of the writing.
        tell: told each trial, and the metric of the base.
        found: told the search when it has ended, before anything is baked.
        announce: told what is to be known before anything is written, a line at a time.

    Raises:
        InputError: see `tune`.
        SeaExportError: see `tune`.
    """
    check_room_for(opened.base, output, export)
    split = held_out_of(usable_by(opened.base, read, options.template), options)
    rows = TuningRows.load(options, split.held_out)
    with saving_progress(f"Loading {opened.base.name}", 0):
        _ = opened.model
    tuning = search(opened, split.fitted, rows, options, export, progress=progress, tell=tell)
    tuning = replace(tuning, edit=with_examples(tuning.edit, opened, progress))
    found(tuning, rows)
    return TunedModel(tuning, bake(tuning, opened, output, export, progress=saving_progress, announce=announce))


def held_out_of(demonstrations: Sequence[Demonstration], options: TuneOptions) -> HeldOut:
    """The demonstrations that a search fits on, and those that it measures on if there is no benchmark.

    Args:
        demonstrations: all of them.
        options: those of the search.
    """
    return hold_out(demonstrations, options.held_out if options.benchmark is None else 0.0, options.seed)
