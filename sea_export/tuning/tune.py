"""Tuning: the settings of an edit are searched on some rows of a benchmark, and reported on the others."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sea_export.capture.opened_model import OpenedModel
from sea_export.cards.record_evaluation import record_evaluation
from sea_export.demonstrations.demonstration import Demonstration, demonstrations_digest
from sea_export.edit.spectral_edit import SpectralEdit
from sea_export.evaluation.benchmark import Progress, named_progress, no_progress
from sea_export.evaluation.metrics import Metric
from sea_export.evaluation.report import BenchmarkReport, make_reports
from sea_export.evaluation.suite import Suite
from sea_export.files.frames import data_frame
from sea_export.fitting.fit_base import with_base
from sea_export.options import SITES, TARGETS, ExportOptions, FitOptions
from sea_export.saving import SaveResult, save_checkpoint
from sea_export.text import dtype_name
from sea_export.tuning.choosing import choose, pareto_front
from sea_export.tuning.search import search
from sea_export.tuning.search_space import SearchSpace
from sea_export.tuning.searched_statistics import default_edit, searched_kinds, searched_statistics
from sea_export.tuning.study import SearchSettings, open_study
from sea_export.tuning.trial import TrialResult, Tuner
from sea_export.tuning.tuning_options import TuneOptions
from sea_export.tuning.tuning_rows import REPORTING, Part, TuningRows

if TYPE_CHECKING:
    from pandas import DataFrame

__all__ = ["Tuning", "bake", "tune"]

DEFAULT, CHOSEN = "default", "chosen"


@dataclass(frozen=True)
class Tuning:
    """The result of a search.

    Attributes:
        settings: everything that decided the results.
        base: the metric of the base on the choosing rows.
        trials: all results.
        front: the results within the budget that no other one beats, by rising divergence.
        chosen: the result that was chosen.
        default: the result of the default edit; None if it was not tried, or cannot be brought within the budget.
        edit: the chosen edit. It says how it was searched.
        reports: part -> `default` or `chosen` -> the reports of that edit, compared with the base.
    """

    settings: SearchSettings
    base: Metric
    trials: tuple[TrialResult, ...]
    front: tuple[TrialResult, ...]
    chosen: TrialResult
    default: TrialResult | None
    edit: SpectralEdit
    reports: Mapping[str, Mapping[str, Sequence[BenchmarkReport]]]

    def to_dict(self) -> dict[str, Any]:
        """All of it but the edit, as plain JSON data."""
        return {
            "settings": self.settings.record(),
            "base_value": self.base.value,
            "trials": [result.record() for result in self.trials],
            "front": [result.number for result in self.front],
            "chosen": self.chosen.number,
            "reports": {
                part: {name: [report.record() for report in found] for name, found in edits.items()}
                for part, edits in self.reports.items()
            },
        }

    def to_frame(self) -> DataFrame:
        """A row for each trial, as a data frame of pandas.

        Raises:
            InputError: pandas is not installed.
        """
        rows = []
        for trial in self.trials:
            own = {name: value for name, value in trial.record().items() if name != "options"}
            named = ("method", "form", "rank", "layers", "target", "center", "damping")
            settings = {name: getattr(trial.candidate.options, name) for name in named}
            rows.append({**own, **settings, "chosen": trial == self.chosen})
        return data_frame(rows)

    def plot(self, file: Path | str) -> None:
        """Draws the trials: score against KL from the base.

        Args:
            file: the picture to write. Its ending decides the format (.png, .pdf, .svg).

        Raises:
            InputError: matplotlib is missing, or the file cannot be written.
        """
        from sea_export.tuning.search_plot import plot_search

        plot_search(self, Path(file))


def tune(
    opened: OpenedModel,
    demonstrations: Sequence[Demonstration],
    rows: TuningRows,
    options: TuneOptions,
    export: ExportOptions,
    *,
    progress: Progress = no_progress,
    tell: Callable[[TrialResult, Metric], None] = lambda result, base: None,
) -> Tuning:
    """Searches settings, chooses, and measures the default and the chosen edit on both parts of the rows.

    Args:
        opened: the base.
        demonstrations: those to fit on.
        rows: from `TuningRows.load`.
        options: what is searched, and for how long.
        export: how the chosen edit will be baked. Settings that the format cannot hold are not tried.
        progress: shows the progress.
        tell: told the result of each trial, and the metric of the base.

    Raises:
        InputError: a setting, the storage or the model is not usable.
        SeaExportError: no trial stayed within the budget, or all that did are worse than the base.
    """
    kinds = searched_kinds(opened, options, export)
    bank = searched_statistics(opened, demonstrations, kinds, options, progress)
    targets, sites = options.targets or TARGETS, options.sites or SITES
    space = SearchSpace(bank.layer_count, options.max_kl, kinds, targets, sites)
    start = default_edit(options, bank.layer_count)
    tuner = Tuner(
        bank,
        opened.whole_model,
        opened.base.tokenizer,
        rows.choosing.benchmark,
        rows.choosing.texts,
        rows.choosing.questions,
        metric=rows.metric,
        scratch=opened.scratch,
        batch_tokens=options.batch_tokens,
    )
    settings = _settings(opened, demonstrations, rows, options, space, start)
    results = search(
        open_study(options.storage, settings),
        tuner,
        space,
        start,
        trials=options.trials,
        timeout=options.timeout,
        seed=options.seed,
        progress=lambda result: tell(result, tuner.base),
    )
    limits = {"max_divergence": options.max_kl, "base_score": tuner.base.score}
    chosen = choose(results, options.pick, **limits)
    default = results[0] if space.contains(start) and results[0].cut is None else None
    compared = {CHOSEN: chosen} if default is None else {DEFAULT: default, CHOSEN: chosen}
    edits = {name: bank.fit(result.options).edit() for name, result in compared.items()}
    return Tuning(
        settings=settings,
        base=tuner.base,
        trials=tuple(results),
        front=tuple(pareto_front(results, **limits)),
        chosen=chosen,
        default=default,
        edit=_named(edits[CHOSEN], opened, rows, options, len(results)),
        reports={part.name: _reports(part, edits, opened, options, progress) for part in rows.parts},
    )


def bake(
    tuning: Tuning,
    opened: OpenedModel,
    output: Path,
    export: ExportOptions,
    *,
    progress: Progress = no_progress,
    announce: Callable[[str], None] | None = None,
) -> SaveResult:
    """Bakes the chosen edit into a checkpoint, and records its metrics on the reporting rows there.

    Args:
        tuning: the search.
        opened: the base. It is left in another dtype than it came in.
        output: the directory to write.
        export: how.
        progress: see `sea_export.saving.save_checkpoint`.
        announce: told what is to be known before anything is written, a line at a time.

    Raises:
        InputError: see `sea_export.saving.save`.
        SeaExportError: see `sea_export.saving.save`.
    """
    result = save_checkpoint(
        tuning.edit, opened.base, output, export, model=opened.model, progress=progress, announce=announce
    )
    reports = tuning.reports[REPORTING][CHOSEN]
    record_evaluation(output, reports, against=opened.base.name, dtype=tuning.settings.dtype, sampled=True)
    return result


def _settings(
    opened: OpenedModel,
    demonstrations: Sequence[Demonstration],
    rows: TuningRows,
    options: TuneOptions,
    space: SearchSpace,
    start: FitOptions,
) -> SearchSettings:
    base = opened.base
    return SearchSettings(
        base={"name": base.name, "revision": base.revision, "weights": dict(base.weight_digests)},
        dtype=dtype_name(opened.whole_model.dtype),
        demonstrations=demonstrations_digest(demonstrations),
        benchmark=rows.choosing.benchmark.label,
        choosing_rows=_digest(rows.choosing.benchmark.rows),
        texts=_digest((*rows.choosing.texts, *rows.choosing.questions)),
        metric=rows.metric,
        space=space,
        start=start,
        seed=options.seed,
    )


def _digest(rows: Sequence[object]) -> str:
    return hashlib.sha256(repr(rows).encode()).hexdigest()


def _named(
    edit: SpectralEdit, opened: OpenedModel, rows: TuningRows, options: TuneOptions, trials: int
) -> SpectralEdit:
    """The edit with its base, and with how its settings were searched."""
    searched = {
        "benchmark": rows.choosing.benchmark.label,
        "rows": len(rows.choosing.benchmark.rows),
        "metric": rows.metric,
        "max_kl": options.max_kl,
        "trials": trials,
        "pick": options.pick,
    }
    named = with_base(edit, opened.base)
    return replace(named, provenance={**named.provenance, "tuning": searched})


def _reports(
    part: Part, edits: Mapping[str, SpectralEdit], opened: OpenedModel, options: TuneOptions, progress: Progress
) -> dict[str, list[BenchmarkReport]]:
    """Reports of each edit on a part of the rows, compared with the base."""
    model, tokenizer = opened.whole_model, opened.base.tokenizer
    suite = Suite((part.benchmark,), part.texts, part.questions, options.batch_tokens)
    base, reference = suite.measure_base(model, tokenizer, named_progress(progress, f"{part.name} rows, base"))
    reports = {}
    for name, edit in edits.items():
        with edit.apply(model):
            shown = named_progress(progress, f"{part.name} rows, {name} edit")
            measured = suite.measure(model, tokenizer, reference, shown)
        reports[name] = make_reports(measured, base, seed=options.seed)
    return reports
