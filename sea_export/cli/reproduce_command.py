"""`sea-export reproduce`: the same run again from its manifest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from sea_export.cli.reporting import reported


@click.command("reproduce")
@click.argument("manifest", type=click.Path(path_type=Path))
@click.argument("output", type=click.Path(path_type=Path))
@click.option("--base", help="Directory or .gguf file of the base; by default the Hub id in the manifest.")
@click.option(
    "--demonstrations",
    multiple=True,
    metavar="FILE",
    help="Where the demonstrations are, if they came from a local file; once for each edit that has such.",
)
@click.option("--device", help="cpu, cuda, cuda:1, mps; by default the kind of device that the run used.")
@click.option("--trust-remote-code", is_flag=True, help="Run code that comes with the base model.")
@click.option("--overwrite", is_flag=True, help="Replace a checkpoint that sea-export wrote before.")
@reported
def command(manifest: Path, output: Path, **values: Any) -> None:
    """Repeat the run that MANIFEST tells of, and tell whether its result is the same.

    MANIFEST is a sea_export.json, or the checkpoint that holds one. The repeated run writes OUTPUT. The result is
    byte-identical, equal to rounding (of half the digits of the dtype that was computed in), or different; then the
    exit status is 1.
    """
    from sea_export.cli.reproduce_job import run_reproduction

    run_reproduction(manifest, output, values)
