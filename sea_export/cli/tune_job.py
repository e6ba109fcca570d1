"""What `tune` does, step by step, and what it prints."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from sea_export.cards.record_evaluation import record_evaluation
from sea_export.cli import jobs
from sea_export.cli.evaluate_job import progress_for
from sea_export.cli.jobs import OpenedModel
from sea_export.cli.progress import counting_progress
from sea_export.cli.terminal import console
from sea_export.cli.tune_output import print_front, print_outcome, print_reports, tuning_record
from sea_export.demonstrations.demonstration import Demonstration, demonstrations_digest
from sea_export.demonstrations.demonstration_options import DemonstrationOptions
from sea_export.edit.spectral_edit import SpectralEdit
from sea_export.errors import InputError
from sea_export.evaluation.benchmark import Benchmark, split, split_rows
from sea_export.evaluation.damage import load_texts
from sea_export.evaluation.drawing import check_picture
from sea_export.evaluation.report import BenchmarkReport, make_reports
from sea_export.evaluation.suite import Suite, load_benchmark
from sea_export.export.output import check_output
from sea_export.files.writing import write_json
from sea_export.fitting.bank import StatisticsBank
from sea_export.fitting.layer_choice import LayerChoice, choose_targets
from sea_export.model.run_options import RunOptions
from sea_export.options import CENTERS, SITES, TARGETS, CaptureOptions, ExportOptions, FitOptions
from sea_export.saving import check_room_for, locate_fit, save_checkpoint
from sea_export.text import dtype_name
from sea_export.tuning.search import SearchSpace, Tuner, choose, open_study, pareto_front, search
from sea_export.tuning.search_plot import plot_search
from sea_export.tuning.tuning_options import TuneOptions

__all__ = ["run_tuning"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Part:
    """Rows and texts that are used together: for choosing, or for reporting."""

    name: str
    benchmark: Benchmark
    texts: tuple[str, ...]


def run_tuning(
    model: str,
    output: Path,
    options: TuneOptions,
    data: DemonstrationOptions,
    run: RunOptions,
    saving: ExportOptions,
) -> None:
    """`sea-export tune`."""
    json_file = options.json_file or output.with_name(f"{output.name}.tune.json")
    _check(output, json_file, saving, options)
    demonstrations = jobs.read_demonstrations(data, options.seed)
    choosing, reporting = _parts(options)
    metric = _metric(choosing.benchmark, options)
    with jobs.opened_model(model, run, output) as opened:
        check_room_for(opened.base, output, saving)
        centers = _centers(opened, saving, options)
        bank = _bank(opened, demonstrations, options)
        space = SearchSpace(bank.layer_count, options.targets or TARGETS, options.sites or SITES, centers)
        start = _start(options, bank.layer_count)
        tuner = Tuner(
            bank,
            opened.whole_model,
            opened.base.tokenizer,
            choosing.benchmark,
            choosing.texts,
            metric=metric,
            max_divergence=options.max_kl,
            batch_tokens=options.batch_tokens,
        )
        settings = _settings(opened, demonstrations, choosing, tuner, space, start, options)
        outcomes = search(
            open_study(options.storage, settings),
            tuner,
            space,
            start,
            trials=options.trials,
            timeout=options.timeout,
            seed=options.seed,
            progress=lambda outcome: print_outcome(outcome, tuner.metric, tuner.base),
        )
        front = pareto_front(outcomes, tuner.max_divergence)
        chosen = choose(outcomes, options.pick, max_divergence=tuner.max_divergence, base_score=tuner.base.score)
        print_front(front, chosen, tuner.metric, tuner.base)
        edits = {"default": bank.edit(start), "chosen": bank.edit(chosen.options)}
        dtype = dtype_name(opened.whole_model.dtype)
        reports = {part.name: _reports(part, edits, opened, options) for part in (choosing, reporting)}
        for part in (choosing, reporting):
            print_reports(part.name, len(part.benchmark.rows), reports[part.name], tuner.metric)
        if options.plot is not None:
            default = outcomes[0] if space.contains(start) else None
            points = (outcomes, front, chosen, default)
            plot_search(*points, tuner.metric, tuner.base, tuner.max_divergence, options.plot)
            console.print(f"Saved the picture to {options.plot}.")
        write_json(json_file, tuning_record(settings, outcomes, front, chosen, tuner.base, reports))
        console.print(f"Wrote settings and figures to {json_file}.")
        searched = {
            "benchmark": choosing.benchmark.label,
            "rows": len(choosing.benchmark.rows),
            "metric": tuner.metric,
            "max_kl": tuner.max_divergence,
            "trials": len(outcomes),
            "pick": options.pick,
        }
        _bake(edits["chosen"], searched, opened, output, saving, reports["reporting"]["chosen"], dtype)


def _check(output: Path, json_file: Path, saving: ExportOptions, options: TuneOptions) -> None:
    """Raises InputError for what would fail after the work is done."""
    check_output(output, overwrite=saving.overwrite)
    if options.plot is not None:
        check_picture(options.plot)
    for file in (json_file, options.storage):
        if file is not None and not file.resolve().parent.is_dir():
            raise InputError(f"{file} cannot be written: its directory does not exist")


def _parts(options: TuneOptions) -> tuple[_Part, _Part]:
    """The rows and texts to choose on, and those to report on."""
    benchmarks = split(load_benchmark(options.benchmark), options.choosing, options.seed)
    texts = split_rows(load_texts(options.text), 0.5, options.seed, "the text for the damage")
    return _Part("choosing", benchmarks[0], texts[0]), _Part("reporting", benchmarks[1], texts[1])


def _metric(benchmark: Benchmark, options: TuneOptions) -> str:
    metric: str = options.metric or benchmark.metrics[0]
    if metric not in benchmark.metrics:
        raise InputError(f"--metric {metric}: {benchmark.label} gives {', '.join(benchmark.metrics)}")
    return metric


def _centers(opened: OpenedModel, saving: ExportOptions, options: TuneOptions) -> tuple[str, ...]:
    """How edits may be centred: as was asked, or every way that the base and the format have room for."""
    if options.centers:
        return tuple(options.centers)
    try:
        for target in options.targets or TARGETS:
            affine = FitOptions(layers="all", target=target, center="affine")
            locate_fit(opened.base, choose_targets(opened.base.skeleton, affine), affine, saving)
    except InputError as error:
        logger.info("no affine edit is tried: %s", error)
        return tuple(center for center in CENTERS if center != "affine")
    return CENTERS


def _start(options: TuneOptions, layer_count: int) -> FitOptions:
    """The default edit, of as many of its layers as there are."""
    default = FitOptions()
    count = len(LayerChoice.parse(default.layers, layer_count).candidates)
    capture = CaptureOptions(batch_tokens=options.batch_tokens, seed=options.seed)
    return replace(default, layers=f"last:{count}", template=options.template, capture=capture)


def _bank(opened: OpenedModel, demonstrations: Sequence[Demonstration], options: TuneOptions) -> StatisticsBank:
    """All that is searched, and what the default edit needs."""
    default = FitOptions()
    sites = dict.fromkeys((*(options.sites or SITES), default.capture.site))
    with counting_progress("Capturing", len(demonstrations) * len(sites)) as advance:
        return StatisticsBank(
            opened.whole_model,
            opened.base.tokenizer,
            demonstrations,
            _start(options, 1),
            sites=tuple(sites),
            targets={*(options.targets or TARGETS), default.target},
            progress=advance,
        )


def _settings(
    opened: OpenedModel,
    demonstrations: Sequence[Demonstration],
    choosing: _Part,
    tuner: Tuner,
    space: SearchSpace,
    start: FitOptions,
    options: TuneOptions,
) -> dict[str, Any]:
    """Everything that decides what a trial gives: a study is gone on with only where all of it is the same."""
    return {
        "base": {
            "name": opened.base.name,
            "revision": opened.base.revision,
            "weights": opened.base.weight_digests,
        },
        "dtype": dtype_name(opened.whole_model.dtype),
        "demonstrations": demonstrations_digest(demonstrations),
        "benchmark": choosing.benchmark.label,
        "choosing_rows": _digest(choosing.benchmark.rows),
        "texts": _digest(choosing.texts),
        "metric": tuner.metric,
        "max_kl": tuner.max_divergence,
        "space": asdict(space),
        "start": asdict(start),
        "seed": options.seed,
    }


def _digest(rows: Sequence[object]) -> str:
    return hashlib.sha256(repr(rows).encode()).hexdigest()


def _reports(
    part: _Part, edits: dict[str, SpectralEdit], opened: OpenedModel, options: TuneOptions
) -> dict[str, list[BenchmarkReport]]:
    """What the base and each edit give on a part of the rows, with intervals and differences to the base."""
    suite = Suite((part.benchmark,), part.texts, options.batch_tokens)
    base, reference = suite.measure_base(
        opened.whole_model, opened.base.tokenizer, progress_for(f"{part.name} rows, base")
    )
    reports = {}
    for name, edit in edits.items():
        with edit.apply(opened.whole_model):
            progress = progress_for(f"{part.name} rows, {name} edit")
            measured = suite.measure(opened.whole_model, opened.base.tokenizer, reference, progress)
        reports[name] = make_reports(measured, base, seed=options.seed)
    return reports


def _bake(
    edit: SpectralEdit,
    searched: dict[str, Any],
    opened: OpenedModel,
    output: Path,
    saving: ExportOptions,
    reports: Sequence[BenchmarkReport],
    dtype: str,
) -> None:
    """Writes the checkpoint, with the figures of the reporting rows and how the edit was `searched` for."""
    named = {"name": opened.base.name, "revision": opened.base.revision}
    edit = replace(edit, provenance={**edit.provenance, "base": named, "tuning": searched})
    with jobs.byte_progress("Writing", opened.base) as progress:
        result = save_checkpoint(
            edit, opened.base, output, saving, model=opened.model, progress=progress, announce=console.print
        )
    record_evaluation(output, reports, against=opened.base.name, dtype=dtype)
    jobs.print_saved(result, edit)
