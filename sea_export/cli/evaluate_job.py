"""What `evaluate` does, step by step, and how reports are printed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from sea_export.cards.record_evaluation import record_evaluation
from sea_export.cli.progress import counting_progress
from sea_export.cli.terminal import console
from sea_export.edit.spectral_edit import SpectralEdit
from sea_export.errors import InputError
from sea_export.evaluation.drawing import check_picture
from sea_export.evaluation.loaded_model import LoadedModel, open_loaded_model
from sea_export.evaluation.plots import plot_reports
from sea_export.evaluation.report import BenchmarkReport, make_reports
from sea_export.evaluation.suite import Suite
from sea_export.export.manifest import read_manifest
from sea_export.files.writing import write_json
from sea_export.model.load_model import parse_dtype, quiet_transformers
from sea_export.text import dtype_name, interval_text

__all__ = ["opened_loaded_model", "print_reports", "progress_for", "run_evaluation"]


def run_evaluation(model: str, values: dict[str, Any]) -> None:
    """`sea-export evaluate`, with its options in `values`."""
    quiet_transformers()
    edit = None if values["edit"] is None else SpectralEdit.load(values["edit"])
    base = values["against"] or (model if edit is not None else None)
    _check(model, base, values)
    suite = Suite.parse(values["benchmarks"], text=values["text"], batch_tokens=values["batch_tokens"])
    if values["limit"] is not None:
        suite = suite.sampled(values["limit"], values["seed"])

    baseline, reference, against = None, None, None
    if base is not None:
        with opened_loaded_model(base, values) as against:
            baseline, reference = suite.measure_base(against.model, against.tokenizer, progress_for("base"))
    with opened_loaded_model(model, values) as subject, nullcontext() if edit is None else edit.apply(subject.model):
        dtype = dtype_name(subject.model.dtype)
        progress = progress_for(subject.name)
        if baseline is None:
            measurements, _ = suite.measure_base(subject.model, subject.tokenizer, progress)
        else:
            measurements = suite.measure(subject.model, subject.tokenizer, reference, progress)

    reports = make_reports(measurements, baseline, seed=values["seed"])
    print_reports(reports)
    facts = {"model": subject.name, "against": against and against.name, "dtype": dtype}
    if values["json_file"] is not None:
        benchmarks = [asdict(report) for report in reports]
        write_json(values["json_file"], {**facts, "edited": edit is not None, "benchmarks": benchmarks})
        console.print(f"Wrote the figures to {values['json_file']}.")
    if values["plot"] is not None:
        plot_reports(reports, values["plot"])
        console.print(f"Saved the picture to {values['plot']}.")
    if values["record"] and against is not None:
        record_evaluation(Path(model), reports, against=against.name, dtype=dtype)
        console.print(f"Recorded the figures in the manifest and the model card of {model}.")


def _check(model: str, base: str | None, values: dict[str, Any]) -> None:
    """Raises InputError for what would fail after the work is done."""
    if values["revision"] is not None and all(Path(name).exists() for name in (model, base) if name is not None):
        raise InputError("a revision belongs to a Hub id, and every model here is a local path: leave --revision out")
    if values["record"]:
        if values["against"] is None or values["edit"] is not None:
            raise InputError("--record keeps the figures of an export beside its base's: give --against, and no --edit")
        read_manifest(Path(model))
    if values["plot"] is not None:
        check_picture(values["plot"])
    if values["json_file"] is not None and not values["json_file"].resolve().parent.is_dir():
        raise InputError(f"{values['json_file']} cannot be written: its directory does not exist")


def opened_loaded_model(model: str, values: dict[str, Any]) -> AbstractContextManager[LoadedModel]:
    """The model that a command line names, with `model_options` and `--trust-remote-code` applied."""
    device = values["device"]
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return open_loaded_model(
        model,
        revision=None if Path(model).exists() else values["revision"],
        dtype=parse_dtype(values["dtype"]),
        device=device,
        trust_remote_code=values["trust_remote_code"],
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
