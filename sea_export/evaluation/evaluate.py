"""Evaluating a model, alone or against its base."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sea_export.evaluation.benchmark import Measurement, Progress, named_progress, no_progress
from sea_export.evaluation.early_checks import check_evaluation, check_sources, with_base_of_edit
from sea_export.evaluation.evaluation_options import EvaluateOptions
from sea_export.evaluation.judging import ChosenJudge, Judging
from sea_export.evaluation.loaded_model import LoadedModel, open_loaded_model
from sea_export.evaluation.report import BenchmarkReport, make_reports
from sea_export.evaluation.run_time_edit import applied, edit_name, load_run_time_edit
from sea_export.evaluation.suite import Suite
from sea_export.files.frames import data_frame
from sea_export.model.run_options import RunOptions
from sea_export.text import dtype_name

if TYPE_CHECKING:
    from pandas import DataFrame

    from sea_export.edit.spectral_edit import SpectralEdit

__all__ = ["Evaluation", "evaluate", "evaluate_in_memory"]


@dataclass(frozen=True)
class Evaluation:
    """The result of an evaluation.

    Attributes:
        model: the name of the model.
        against: the name of the base that was measured too; None if there was none.
        dtype: the dtype of the computation.
        edited: whether an edit was applied at run time.
        reports: one for each benchmark.
        judging: how the judging of answers went; None if there was no judge.
        strength: the one that the edit was given; None for its own, or where there was no edit.
    """

    model: str
    against: str | None
    dtype: str
    edited: bool
    reports: tuple[BenchmarkReport, ...]
    judging: Judging | None = None
    strength: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain JSON data."""
        judging = {} if self.judging is None else {"judging": self.judging.record()}
        return {
            "model": self.model,
            "against": self.against,
            "dtype": self.dtype,
            "edited": self.edited,
            "strength": self.strength,
            "benchmarks": [report.record_with_answers() for report in self.reports],
            **judging,
        }

    def to_frame(self) -> DataFrame:
        """A row for each metric of each benchmark, with its 95 % intervals, as a data frame of pandas.

        Raises:
            InputError: pandas is not installed.
        """
        return data_frame([row for report in self.reports for row in report.rows_of_metrics()])

    def plot(self, file: Path | str) -> None:
        """Draws the metrics; compared with a base, their differences to it.

        Args:
            file: the picture to write. Its ending decides the format (.png, .pdf, .svg).

        Raises:
            InputError: matplotlib is missing, or the file cannot be written.
        """
        from sea_export.evaluation.report_plot import plot_reports

        plot_reports(self.reports, Path(file))


def evaluate(model: str, options: EvaluateOptions, run: RunOptions, progress: Progress = no_progress) -> Evaluation:
    """Measures a model on benchmarks, alone or against its base.

    Args:
        model: a base or an export of any format: a Hub id, a directory, or a `.gguf` file; or the directory of an edit.
        options: what is measured, and against what. The files that they name are checked, but not written.
        run: how models are opened.
        progress: shows the progress.

    Raises:
        InputError: a model, a benchmark or a file is not usable.
    """
    model, options = with_base_of_edit(model, options)
    check_evaluation(model, options, run)
    edit = None if options.edit is None else load_run_time_edit(options.edit, options.strength)
    suite = Suite.load(options)
    judge = ChosenJudge.choose(options, run)
    baseline, reference, against = None, None, None
    if options.against is not None:
        with open_loaded_model(options.against, run) as loaded:
            against = loaded.name
            baseline, reference = suite.measure_base(loaded.model, loaded.tokenizer, named_progress(progress, "base"))
    with open_loaded_model(model, run) as loaded:
        own_name = loaded.name if options.edit is None else edit_name(options.edit, options.strength)
        own_progress = named_progress(progress, own_name)
        name, dtype = loaded.name, dtype_name(loaded.model.dtype)
        if edit is not None and against is None:
            against = loaded.name
            baseline, reference = suite.measure_base(loaded.model, loaded.tokenizer, named_progress(progress, "base"))
        with nullcontext() if edit is None else applied(edit, loaded):
            if baseline is None:
                measurements, _ = suite.measure_base(loaded.model, loaded.tokenizer, own_progress)
            else:
                measurements = suite.measure(loaded.model, loaded.tokenizer, reference, own_progress)
    # Judged after the models, so that one model at a time is in memory.
    reports, judging = _judged_reports(measurements, baseline, judge, options, progress)
    return Evaluation(name, against, dtype, edit is not None, reports, judging, options.strength)


def evaluate_in_memory(
    loaded: LoadedModel,
    edit: SpectralEdit | None,
    options: EvaluateOptions,
    run: RunOptions,
    progress: Progress = no_progress,
) -> Evaluation:
    """Measures a base that is in memory, or what an edit changes of it.

    Args:
        loaded: the base.
        edit: the edit, which is applied at run time; None to measure the base alone.
        options: what is measured. They name no models.
        run: how a judge is opened.
        progress: shows the progress.

    Raises:
        InputError: a benchmark or a file is not usable, or the edit does not fit the base.
    """
    check_sources(options)
    suite, judge = Suite.load(options), ChosenJudge.choose(options, run)
    name, dtype = loaded.name, dtype_name(loaded.model.dtype)
    base, reference = suite.measure_base(loaded.model, loaded.tokenizer, named_progress(progress, "base"))
    if edit is None:
        reports, judging = _judged_reports(base, None, judge, options, progress)
        return Evaluation(name, None, dtype, False, reports, judging)
    with applied(edit, loaded):
        edited = suite.measure(loaded.model, loaded.tokenizer, reference, named_progress(progress, "edit"))
    reports, judging = _judged_reports(edited, base, judge, options, progress)
    return Evaluation(name, name, dtype, True, reports, judging)


def _judged_reports(
    measurements: list[Measurement],
    baseline: list[Measurement] | None,
    judge: ChosenJudge | None,
    options: EvaluateOptions,
    progress: Progress,
) -> tuple[tuple[BenchmarkReport, ...], Judging | None]:
    judging = None
    if judge is not None:
        judged, judging = judge.measure([*(baseline or ()), *measurements], progress)
        measurements = judged[-len(measurements) :]
        baseline = baseline and judged[: -len(measurements)]
    return tuple(make_reports(measurements, baseline, seed=options.seed)), judging
