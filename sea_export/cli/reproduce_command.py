"""`sea-export reproduce`: the same run again from its manifest."""

from __future__ import annotations

from pathlib import Path

import click

from sea_export.cli.click_options import options
from sea_export.cli.reporting import reported
from sea_export.verification.reproduce_options import ReproduceOptions


@click.command("reproduce")
@click.argument("manifest", type=click.Path(path_type=Path))
@click.argument("output", type=click.Path(path_type=Path))
@options(reproduce=ReproduceOptions)
@reported
def command(manifest: Path, output: Path, reproduce: ReproduceOptions) -> None:
    """Repeat the run that MANIFEST tells of, and tell whether its result is the same.

    MANIFEST is a sea_export.json, or the checkpoint that holds one. The repeated run writes OUTPUT. The result is
    byte-identical, equal to rounding (of half the digits of the dtype that was computed in), or different; then the
    exit status is 1.
    """
    from sea_export.cli.reproduce_job import run_reproduction

    run_reproduction(manifest, output, reproduce)
