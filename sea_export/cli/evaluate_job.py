"""What `evaluate` does, step by step, and how reports are printed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path

import torch
from rich.table import Table

from sea_export.cards.record_evaluation import record_evaluation
from sea_export.cli.progress import counting_progress
from sea_export.cli.terminal import console
from sea_export.edit.spectral_edit import SpectralEdit
from sea_export.errors import InputError
from sea_export.evaluation.drawing import check_picture
from sea_export.evaluation.evaluation_options import EvaluateOptions
from sea_export.evaluation.loaded_model import LoadedModel, open_loaded_model
from sea_export.evaluation.plots import plot_reports
from sea_export.evaluation.report import BenchmarkReport, make_reports
from sea_export.evaluation.suite import Suite
from sea_export.export.manifest import read_manifest
from sea_export.files.writing import write_json
from sea_export.model.load_model import parse_dtype, quiet_transformers
from sea_export.model.run_options import RunOptions
from sea_export.text import dtype_name, interval_text

__all__ = ["opened_loaded_model", "print_reports", "progress_for", "run_evaluation"]


def run_evaluation(model: str, options: EvaluateOptions, run: RunOptions) -> None:
    """`sea-export evaluate`."""
    quiet_transformers()
    edit = None if options.edit is None else SpectralEdit.load(options.edit)
    base = options.against or (model if edit is not None else None)
    _check(model, base, options, run)
    suite = Suite.parse(options.benchmarks, text=options.text, batch_tokens=options.batch_tokens)
    if options.limit is not None:
        suite = suite.sampled(options.limit, options.seed)

    baseline, reference, against = None, None, None
    if base is not None:
        with opened_loaded_model(base, run) as against:
            baseline, reference = suite.measure_base(against.model, against.tokenizer, progress_for("base"))
    with opened_loaded_model(model, run) as subject, nullcontext() if edit is None else edit.apply(subject.model):
        dtype = dtype_name(subject.model.dtype)
        progress = progress_for(subject.name)
        if baseline is None:
            measurements, _ = suite.measure_base(subject.model, subject.tokenizer, progress)
        else:
            measurements = suite.measure(subject.model, subject.tokenizer, reference, progress)

    reports = make_reports(measurements, baseline, seed=options.seed)
    print_reports(reports)
    facts = {"model": subject.name, "against": against and against.name, "dtype": dtype}
    if options.json_file is not None:
        benchmarks = [asdict(report) for report in reports]
        write_json(options.json_file, {**facts, "edited": edit is not None, "benchmarks": benchmarks})
        console.print(f"Wrote the figures to {options.json_file}.")
    if options.plot is not None:
        plot_reports(reports, options.plot)
        console.print(f"Saved the picture to {options.plot}.")
    if options.record and against is not None:
        record_evaluation(Path(model), reports, against=against.name, dtype=dtype)
        console.print(f"Recorded the figures in the manifest and the model card of {model}.")


def _check(model: str, base: str | None, options: EvaluateOptions, run: RunOptions) -> None:
    """Raises InputError for what would fail after the work is done."""
    if run.revision is not None and all(Path(name).exists() for name in (model, base) if name is not None):
        raise InputError("a revision belongs to a Hub id, and every model here is a local path: leave --revision out")
    if options.record:
        read_manifest(Path(model))
    if options.plot is not None:
        check_picture(options.plot)
    if options.json_file is not None and not options.json_file.resolve().parent.is_dir():
        raise InputError(f"{options.json_file} cannot be written: its directory does not exist")


def opened_loaded_model(model: str, run: RunOptions) -> AbstractContextManager[LoadedModel]:
    """The model that a command line names, with its options applied."""
    device = run.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return open_loaded_model(
        model,
        revision=None if Path(model).exists() else run.revision,
        dtype=parse_dtype(run.dtype),
        device=device,
        trust_remote_code=run.trust_remote_code,
    )


def progress_for(name: str) -> Callable[[str, int], AbstractContextManager[Callable[[int], None]]]:
    """Progress bars for the measurements of the model that is called `name`."""

    @contextmanager
    def progress(description: str, total: int) -> Iterator[Callable[[int], None]]:
        with counting_progress(f"{name}: {description}", total) as advance:
            yield advance

    return progress


def print_reports(reports: Sequence[BenchmarkReport]) -> None:
    """Prints a table a benchmark."""
    for report in reports:
        compared = any(figure.base is not None for figure in report.figures)
        columns = ("figure", "", "base", "this model", "difference", "p") if compared else ("figure", "", "this model")
        table = Table(*columns, title=f"{report.benchmark}, {report.rows} rows, 95 % intervals", title_justify="left")
        for figure in report.figures:
            value = interval_text(figure.value, figure.unit)
            if not compared:
                table.add_row(figure.title, figure.unit, value)
                continue
            table.add_row(
                figure.title,
                figure.unit,
                interval_text(figure.base, figure.unit),
                value,
                interval_text(figure.difference, figure.unit, signed=True),
                "" if figure.p_value is None else f"{figure.p_value:.2g}",
            )
        console.print(table)
