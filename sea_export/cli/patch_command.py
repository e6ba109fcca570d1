"""`sea-export patch`: what an output has that its base has not, in one file, and the output again from both."""

from __future__ import annotations

from pathlib import Path

import click

from sea_export.cli.click_options import single_option
from sea_export.cli.json_output import give_result, json_option
from sea_export.cli.reporting import reported, reporting_options
from sea_export.model.run_options import RunOptions


@click.group("patch")
@reporting_options
def command() -> None:
    """Share an output as a patch: one file, from which everybody who has the base makes the output again.

    \b
    sea-export patch make out edit.safetensors --base org/model
    sea-export patch apply org/model edit.safetensors out-again

    A patch holds what differs from the base, and of weights only what the edit in it does not give again to the last
    bit. It is for whoever may not, or does not want to, share the weights of the base. Whether a license allows to
    share a patch is for you to find out.
    """


@command.command("make")
@click.argument("output", type=click.Path(path_type=Path))
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--base", help="Hub id, directory or .gguf file of the base; by default the Hub id in the manifest.")
@click.option("--revision", help="Revision of the base on the Hub; by default the one in the manifest.")
@single_option(RunOptions, "threads")
@single_option(RunOptions, "trust_remote_code")
@click.option("--overwrite", is_flag=True, help="Replace a patch that is there.")
@reported
@json_option
def make(
    output: Path,
    file: Path,
    base: str | None,
    revision: str | None,
    threads: int | None,
    trust_remote_code: bool,
    overwrite: bool,
) -> None:
    """Make the patch FILE of the checkpoint OUTPUT, which sea-export wrote.

    \b
    sea-export patch make out edit.safetensors --base org/model

    FILE is a safetensors file, with the digests of both sides. It makes every file that sea_export.json in OUTPUT
    lists, and sea_export.json itself. Of these it holds

    \b
    - nothing that the base has: files, and tensors of weight files;
    - no tensor that the edit in OUTPUT gives again, to the last bit and on every processor;
    - every other tensor that differs or is new, and the headers of weight files that differ;
    - every other file that differs: the edit, the model card, sea_export.json, a changed config.

    Before FILE appears, all files are made from it, and must be those of OUTPUT.
    """
    from sea_export.cli.terminal import console, waiting
    from sea_export.export.manifest import read_manifest
    from sea_export.patches.make_patch import check_patch_destination, make_patch

    check_patch_destination(file, overwrite=overwrite)
    read_manifest(output)

    from sea_export.cli.opening import begin_computing  # with torch, which takes seconds to import

    begin_computing(threads)
    with waiting(f"Making {file}"):
        made = make_patch(
            output, file, base=base, revision=revision, trust_remote_code=trust_remote_code, overwrite=overwrite
        )
    console.print(
        f"Made {file}, {_megabytes(made.size)}, for the {made.files} files of {output}, "
        f"{_megabytes(made.output_bytes)}: {len(made.folded)} changed tensors follow from the edit, and "
        f"{len(made.stored)} are stored.",
        soft_wrap=True,
    )
    give_result("patch-make", made)


@command.command("apply")
@click.argument("base")
@click.argument("file", type=click.Path(path_type=Path))
@click.argument("output", type=click.Path(path_type=Path))
@click.option("--revision", help="Revision of the base on the Hub; by default the one that FILE names with its base.")
@click.option("--overwrite", is_flag=True, help="Replace a checkpoint that sea-export wrote before.")
@reported
@json_option
def apply(base: str, file: Path, output: Path, revision: str | None, overwrite: bool) -> None:
    """Make the checkpoint OUTPUT from BASE and the patch FILE.

    \b
    sea-export patch apply org/model edit.safetensors out

    BASE is a Hub id, a local directory, or a .gguf file.
    Before anything is written, every file of BASE must have the digest that FILE names, and so must every file of
    OUTPUT, which is computed for that. Nothing in FILE is run.
    """
    from sea_export.cli.printing import print_commands
    from sea_export.cli.terminal import console, waiting
    from sea_export.patches.apply_patch import apply_patch

    with waiting(f"Making {output}"):
        applied = apply_patch(base, file, output, revision=revision, overwrite=overwrite)
    console.print(f"Made {output}: every file is the one that {file} names, byte for byte.", soft_wrap=True)
    print_commands({"Verify it": ("verify", output, "--base", base)})
    give_result("patch-apply", applied)


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.3g} MB"
