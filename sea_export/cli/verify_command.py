"""`sea-export verify`: is the checkpoint the edit it claims to be?"""

from __future__ import annotations

from pathlib import Path

import click

from sea_export.cli.click_options import single_option
from sea_export.cli.completion import complete_files
from sea_export.cli.json_output import give_result, json_option
from sea_export.cli.reporting import reported
from sea_export.model.run_options import RunOptions


@click.command("verify")
@click.argument("output", shell_complete=complete_files)
@click.option(
    "--base",
    help="Hub id, directory or .gguf file of the base; by default the Hub id in the manifest.",
    shell_complete=complete_files,
)
@click.option("--revision", help="Revision of the base on the Hub.")
@single_option(RunOptions, "layerwise")
@single_option(RunOptions, "threads")
@click.option("--trust-remote-code", is_flag=True, help="Run code that comes with the base model.")
@reported
@json_option
def command(
    output: str,
    base: str | None,
    revision: str | None,
    layerwise: bool | None,
    threads: int | None,
    trust_remote_code: bool,
) -> None:
    """Compare the checkpoint OUTPUT with the edit of its base, and write the measurements to its manifest.

    Every file must be the one that its manifest names, then every tensor, and then the predictions are compared. Each
    of these is done only if the one before it finds nothing wrong.
    OUTPUT is a directory, or a Hub id (REPO_ID or REPO_ID@REVISION), where nothing is written.
    Exits with 1 when it is not that edit, or when the edit does nothing.
    """
    from sea_export.cli.printing import print_verdict, print_verification
    from sea_export.cli.terminal import waiting
    from sea_export.export.manifest import read_manifest, write_manifest
    from sea_export.locks import taking_turns
    from sea_export.verification.clean_process import CleanProcess
    from sea_export.verification.verification import Verification
    from sea_export.verification.verify import check_output_files

    with waiting("Comparing files"):
        verification = check_output_files(output, base, revision=revision, trust_remote_code=trust_remote_code)
    if not isinstance(verification, Verification):
        with CleanProcess() as process:
            if verification.format.loads_in_transformers:
                process.begin()  # before torch is imported here, so that both processes import it at the same time
            from sea_export.cli.opening import begin_computing

            begin_computing(threads)
            with waiting("Verifying"):
                verification = verification.verify(process, layerwise=layerwise)
    print_verification(verification)
    print_verdict(verification, output)
    directory = Path(output)
    if verification.measured and directory.is_dir():
        with taking_turns(directory):
            write_manifest(directory, {**read_manifest(directory), "verification": verification.record()})
    give_result("verify", verification)
    if not verification.passed:
        raise click.exceptions.Exit(1)
