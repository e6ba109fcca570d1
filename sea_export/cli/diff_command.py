"""`sea-export diff`: which tensors and files of two checkpoints differ, and by how much."""

from __future__ import annotations

from pathlib import Path

import click

from sea_export.cli.reporting import reported


@click.command("diff")
@click.argument("a", type=click.Path(path_type=Path))
@click.argument("b", type=click.Path(path_type=Path))
@reported
def command(a: Path, b: Path) -> None:
    """Show which tensors and files of the checkpoint directories or .gguf files A and B differ, and by how much."""
    if ".gguf" in (a.suffix, b.suffix):
        _print_gguf_difference(a, b)
        return
    from sea_export.cli.terminal import console, plain_table
    from sea_export.errors import printable
    from sea_export.model.checkpoint import Checkpoint
    from sea_export.model.diff import compare_checkpoints

    difference = compare_checkpoints(Checkpoint.open(a), Checkpoint.open(b))
    table = plain_table("tensor", "largest difference", "relative (Frobenius)")
    for name, change in difference.tensors_changed.items():
        table.add_row(name, f"{change.maximum:.3g}", f"{change.relative:.3g}")
    if difference.tensors_changed:
        console.print(table)
    for label, names in (
        (f"only in {a}", (*difference.tensors_only_in_a, *difference.files_only_in_a)),
        (f"only in {b}", (*difference.tensors_only_in_b, *difference.files_only_in_b)),
        ("other shape or dtype", difference.tensors_of_other_form),
        ("other contents", (*difference.files_changed, *difference.metadata_changed)),
    ):
        for name in names:
            console.print(f"{label}: {printable(name)}", soft_wrap=True)
    console.print(
        f"{len(difference.tensors_changed)} tensors differ; {difference.tensors_identical} tensors and "
        f"{difference.files_identical} files are identical."
    )


def _print_gguf_difference(a: Path, b: Path) -> None:
    from sea_export.cli.terminal import console, plain_table
    from sea_export.errors import printable
    from sea_export.model.gguf_model import check_gguf_package

    check_gguf_package(a)
    from sea_export.model.gguf_diff import compare_gguf

    difference = compare_gguf(a, b)
    table = plain_table("tensor", "type in A", "type in B", "largest difference", "relative (Frobenius)")
    for name, (one, other, change) in difference.tensors_changed.items():
        table.add_row(name, one.type.name, other.type.name, f"{change.maximum:.3g}", f"{change.relative:.3g}")
    if difference.tensors_changed:
        console.print(table)
    for label, names in (
        (f"only in {a}", (*difference.tensors_only_in_a, *difference.keys_only_in_a)),
        (f"only in {b}", (*difference.tensors_only_in_b, *difference.keys_only_in_b)),
        ("other shape", difference.tensors_of_other_shape),
        ("other value", difference.keys_changed),
    ):
        for name in names:
            console.print(f"{label}: {printable(name)}", soft_wrap=True)
    console.print(
        f"{len(difference.tensors_changed)} tensors differ; {difference.tensors_identical} tensors and "
        f"{difference.keys_identical} keys of the metadata are identical."
    )
