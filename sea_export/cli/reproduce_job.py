"""What `reproduce` does, step by step, and what it prints."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import click
import torch
from rich.table import Table

from sea_export.cli import jobs
from sea_export.cli.jobs import OpenedModel
from sea_export.cli.terminal import console
from sea_export.demonstrations.demonstration import Demonstration
from sea_export.edit.spectral_edit import SpectralEdit, compose
from sea_export.errors import InputError
from sea_export.export.manifest import read_manifest
from sea_export.export.output import check_output
from sea_export.fitting.distributed import ALONE
from sea_export.model.base import open_base
from sea_export.model.load_model import dtype_named, quiet_transformers
from sea_export.options import ExportOptions
from sea_export.saving import SaveResult, check_room_for, save_checkpoint
from sea_export.verification.recorded_run import RecordedRun
from sea_export.verification.reproduce import DIFFERENT, Reproduction, compare_runs
from sea_export.verification.reproduce_options import ReproduceOptions

__all__ = ["run_reproduction"]


def run_reproduction(path: Path, output: Path, options: ReproduceOptions) -> None:
    """`sea-export reproduce`."""
    quiet_transformers()
    manifest = read_manifest(path)
    directory = path if path.is_dir() else path.parent
    recipe = RecordedRun.of(manifest)
    check_output(output, overwrite=options.overwrite)
    if output.resolve() == directory.resolve():
        raise InputError(f"{output} is the very run that is to be repeated: choose another output")
    if recipe.trust_remote_code and not options.trust_remote_code:
        raise InputError("the run used code that comes with its base: --trust-remote-code lets it run again")
    demonstrations = recipe.demonstrations(options.demonstrations)
    saving = replace(recipe.saving, overwrite=options.overwrite)
    with _opened(recipe, output, options) as opened:
        check_room_for(opened.base, output, saving)
        with console.status("Comparing the base with the manifest's"):
            recipe.check_base(opened.base)
        changes = [*recipe.changed_versions(), *_changed_circumstances(recipe, opened.device)]
        _run(recipe, demonstrations, opened, output, saving)
    _print(compare_runs(manifest, directory, output), changes, output)


@contextmanager
def _opened(recipe: RecordedRun, output: Path, options: ReproduceOptions) -> Iterator[OpenedModel]:
    """The base of the run, to be loaded as it was loaded then."""
    base = recipe.base
    if options.base is None and base["revision"] is None:
        raise InputError(f"the base was the local model {base['name']!r}: say where it is with --base")
    model = options.base or base["name"]
    revision = None if Path(model).expanduser().exists() else base["revision"]
    stored, computed = dtype_named(base["dtype"]), dtype_named(recipe.computation["dtype"])
    with open_base(
        model,
        revision=revision,
        dtype=stored,
        dequantize=base["dequantized"],
        trust_remote_code=options.trust_remote_code,
    ) as resolved:
        yield OpenedModel(
            resolved,
            computed,
            options.device or recipe.computation["device"],
            device_map=None,
            layerwise=recipe.computation["layerwise"] or None,
            scratch=output.resolve().parent,
        )


def _run(
    recipe: RecordedRun,
    demonstrations: Sequence[Sequence[Demonstration]],
    opened: OpenedModel,
    output: Path,
    saving: ExportOptions,
) -> SaveResult:
    """Fits every edit again, and bakes their product."""
    edits: list[SpectralEdit] = []
    for fit, contrasts in zip(recipe.fits, demonstrations, strict=True):
        edit = jobs.fit_with_progress(opened, contrasts, fit.options, None, ALONE)
        edit = jobs.with_base_digests(edit, opened)
        if fit.tuning is not None:  # the search is not repeated: its choice is
            edit = replace(edit, provenance={**edit.provenance, "tuning": fit.tuning})
        edits.append(edit)
    with jobs.byte_progress("Writing", opened.base) as progress:
        return save_checkpoint(
            compose(edits), opened.base, output, saving, model=opened.model, progress=progress, announce=console.print
        )


def _changed_circumstances(recipe: RecordedRun, device: str) -> list[str]:
    now = {"device": device.partition(":")[0], "threads": torch.get_num_threads(), "processes": 1}
    return [
        f"{name} {recipe.computation[name]} then, {value} now"
        for name, value in now.items()
        if recipe.computation[name] != value
    ]


def _print(result: Reproduction, changes: Sequence[str], output: Path) -> None:
    """Prints the verdict, what differs, and what was different in how the runs were made."""
    table = Table("file", "tensor", "largest difference", "relative (Frobenius)")
    for (file, tensor), change in result.tensors.items():
        table.add_row(file, tensor, f"{change.maximum:.3g}", f"{change.relative:.3g}")
    if result.tensors:
        console.print(table)
    if result.edit:
        target = max(result.edit, key=lambda one: result.edit[one])
        console.print(
            f"What the edits do differs by at most {result.edit[target]:.1e} of itself (at {target}); up to "
            f"{result.tolerance:.1e} is taken for rounding."
        )
    for label, lines in (
        ("Differs", result.changed_files),
        ("Differs, but only describes the run", result.changed_descriptions),
        ("Changed since", changes),
        ("Problem", result.problems),
    ):
        for line in lines:
            console.print(f"{label}: {line}", soft_wrap=True)
    console.print(f"The repeated run in {output} is {result.verdict} ({result.identical_files} identical files).")
    if result.verdict == DIFFERENT:
        raise click.exceptions.Exit(1)
