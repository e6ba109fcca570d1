"""`sea-export reproduce`: the same run again from its manifest."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from sea_export.cli.click_options import options
from sea_export.cli.json_output import give_result, json_option
from sea_export.cli.reporting import reported
from sea_export.verification.reproduce_options import ReproduceOptions

if TYPE_CHECKING:
    from sea_export.verification.reproduce import Reproduction


@click.command("reproduce")
@click.argument("manifest", type=click.Path(path_type=Path))
@click.argument("output", type=click.Path(path_type=Path))
@options(reproduce=ReproduceOptions)
@reported
@json_option
def command(manifest: Path, output: Path, reproduce: ReproduceOptions) -> None:
    """Repeat the run that MANIFEST tells of, and tell whether its result is the same.

    MANIFEST is a sea_export.json, or the checkpoint that holds one. The repeated run writes OUTPUT. The result is
    byte-identical, equal to rounding (of half the digits of the dtype that was computed in), or different; then the
    exit status is 1.
    """
    from sea_export.cli.early_process import early_process
    from sea_export.export.manifest import read_manifest
    from sea_export.model.run_options import RunOptions
    from sea_export.verification.recorded_run import RecordedRun
    from sea_export.verification.repeatable import check_repeatable, locate_base

    recorded, directory = read_manifest(manifest), manifest if manifest.is_dir() else manifest.parent
    run = RecordedRun.of(recorded)
    export = run.export_options(overwrite=reproduce.overwrite)
    check_repeatable(run, directory, output, reproduce)
    demonstrations = run.demonstrations(reproduce.demonstrations)
    location = locate_base(run, reproduce)

    computation = RunOptions(
        layerwise=run.computation["layerwise"], threads=reproduce.threads or run.computation["threads"]
    )
    with early_process(export, computation) as process:
        # Nothing before this needs torch, which takes seconds to import.
        from sea_export.cli.progress import fit_progress, loaded, saving_progress
        from sea_export.cli.terminal import console, waiting
        from sea_export.fitting.distributed import ALONE
        from sea_export.interface.repeating import repeat
        from sea_export.model.load_model import quiet_transformers
        from sea_export.verification.reproduce import DIFFERENT

        quiet_transformers()
        result = repeat(
            *(manifest, output, reproduce, run, demonstrations, location),
            process=process,
            fit_progress=lambda count: fit_progress(count, ALONE),
            progress=saving_progress,
            waiting=waiting,
            prepared=loaded,
            announce=console.print,
        )
    _print_result(result, output)
    give_result("reproduce", result)
    if result.verdict == DIFFERENT:
        raise click.exceptions.Exit(1)


def _print_result(result: Reproduction, output: Path) -> None:
    """Prints the verdict, what differs, and what was different in the circumstances of the two runs."""
    from sea_export.cli.terminal import console, plain_table

    table = plain_table("file", "tensor", "largest difference", "relative (Frobenius)")
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
        ("Changed since", result.changed_circumstances),
        ("Problem", result.problems),
    ):
        for line in lines:
            console.print(f"{label}: {line}", soft_wrap=True)
    console.print(f"The repeated run in {output} is {result.verdict} ({result.identical_files} identical files).")
