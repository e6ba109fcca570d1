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
    """Show which tensors and files of the checkpoint directories A and B differ, and by how much."""
    from rich.table import Table

    from sea_export.cli.terminal import console
    from sea_export.errors import printable
    from sea_export.model.checkpoint import Checkpoint
    from sea_export.model.diff import compare_checkpoints

    difference = compare_checkpoints(Checkpoint.open(a), Checkpoint.open(b))
    table = Table("tensor", "largest difference", "relative (Frobenius)")
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
