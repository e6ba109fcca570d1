"""`sea_export.reproduce`, and the repeated run that it shares with the command."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path

from sea_export.capture.opened_model import OpenedModel
from sea_export.capture.progress_callback import ProgressCallback, progress_of, waiting_of
from sea_export.demonstrations.demonstration import Demonstration
from sea_export.evaluation.benchmark import Progress, no_progress
from sea_export.export.manifest import check_base, read_manifest
from sea_export.model.location import ModelLocation
from sea_export.model.threads import use_threads
from sea_export.saving import check_room_for, save_checkpoint
from sea_export.verification.clean_process import CleanProcess
from sea_export.verification.recorded_run import RecordedRun
from sea_export.verification.repeat_run import changed_circumstances, fit_again, open_again
from sea_export.verification.repeatable import check_repeatable, locate_base
from sea_export.verification.reproduce import Reproduction, compare_runs
from sea_export.verification.reproduce_options import ReproduceOptions

__all__ = ["repeat", "reproduce"]


def reproduce(
    manifest: str | Path,
    output: str | Path,
    *,
    base: str | Path | None = None,
    demonstrations: str | Path | Sequence[str | Path] = (),
    device: str | None = None,
    threads: int | None = None,
    trust_remote_code: bool = False,
    overwrite: bool = False,
    progress: ProgressCallback | None = None,
) -> Reproduction:
    """Repeats the run that a manifest tells of, and tells whether its result is the same.

    Args:
        manifest: a `sea_export.json`, or the checkpoint that holds one.
        output: what the repeated run writes.
        base: a directory or a `.gguf` file of the base; None for the Hub id in the manifest.
        demonstrations: where the demonstrations are, if they came from local files; one for each edit that has such.
        device: `cpu`, `cuda`, `cuda:1` or `mps`; None for the kind of device that the run used.
        threads: how many threads to compute with; None for as many as the run used.
        trust_remote_code: whether code that comes with the base may run.
        overwrite: replace a checkpoint that sea-export wrote before.
        progress: told a stage, how much of it is done, and how much there is to do.

    Raises:
        InputError: the run cannot be repeated, or the output cannot be written.
        SeaExportError: the repeated run failed.
    """
    sources = [demonstrations] if isinstance(demonstrations, (str, Path)) else demonstrations
    options = ReproduceOptions(
        None if base is None else str(base), tuple(map(str, sources)), device, threads, trust_remote_code, overwrite
    )
    run = RecordedRun.of(read_manifest(Path(manifest)))
    check_repeatable(run, _directory(Path(manifest)), Path(output), options)
    read, location = run.demonstrations(options.demonstrations), locate_base(run, options)
    use_threads(options.threads or run.computation["threads"])
    shown = progress_of(progress)
    return repeat(
        *(Path(manifest), Path(output), options, run, read, location),
        fit_progress=lambda count: shown("Reading demonstrations", count),
        progress=shown,
        waiting=waiting_of(progress),
    )


def repeat(
    manifest: Path,
    output: Path,
    options: ReproduceOptions,
    run: RecordedRun,
    demonstrations: Sequence[Sequence[Demonstration]],
    location: ModelLocation,
    *,
    process: CleanProcess | None = None,
    fit_progress: Callable[[int], AbstractContextManager[Callable[[int], None]]],
    progress: Progress = no_progress,
    waiting: Callable[[str], AbstractContextManager[object]] = nullcontext,
    prepared: Callable[[OpenedModel], OpenedModel] = lambda opened: opened,
    announce: Callable[[str], None] | None = None,
) -> Reproduction:
    """Repeats a run that was found to be repeatable.

    Args:
        manifest: that of the first run, or the checkpoint that holds it.
        output: what the repeated run writes.
        options: how the run is repeated.
        run: the first run.
        demonstrations: those of each of its fits.
        location: where its base is.
        process: the one in which the output is verified; None to start one for it.
        fit_progress: given a number of demonstrations, a context whose value is told how many are done.
        progress: shows the progress of the writing.
        waiting: is told what goes on; its context is open meanwhile.
        prepared: loads the base, and shows that.
        announce: told what is to be known before anything is written, a line at a time.

    Raises:
        InputError: see `reproduce`.
        SeaExportError: see `reproduce`.
    """
    export = run.export_options(overwrite=options.overwrite)
    with open_again(run, location, options, scratch=output.resolve().parent) as opened:
        check_room_for(opened.base, output, export)
        with waiting("Comparing the base with the manifest's"):
            check_base(opened.base, run.base["files"])
        changes = changed_circumstances(run, opened.device)
        edit = fit_again(run, demonstrations, prepared(opened), fit_progress)
        save_checkpoint(
            *(edit, opened.base, output, export),
            model=opened.model,
            process=process,
            progress=progress,
            announce=announce,
        )
    result = compare_runs(read_manifest(manifest), _directory(manifest), output)
    return replace(result, changed_circumstances=tuple(changes))


def _directory(manifest: Path) -> Path:
    return manifest if manifest.is_dir() else manifest.parent
