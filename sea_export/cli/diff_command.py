"""`sea-export diff`: which tensors and files of two checkpoints differ, and by how much."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sea_export.cli.json_output import give_result, json_option
from sea_export.cli.reporting import reported

if TYPE_CHECKING:
    from sea_export.model.diff import CheckpointDifference
    from sea_export.model.gguf_diff import GgufDifference


@click.command("diff")
@click.argument("a", type=click.Path(path_type=Path))
@click.argument("b", type=click.Path(path_type=Path))
@reported
@json_option
def command(a: Path, b: Path) -> None:
    """Show which tensors and files of the checkpoint directories or .gguf files A and B differ, and by how much."""
    from sea_export.model.diff import CheckpointDifference
    from sea_export.model.diff_models import diff

    difference = diff(a, b)
    if isinstance(difference, CheckpointDifference):
        _print_difference(a, b, difference)
    else:
        _print_gguf_difference(a, b, difference)
    give_result("diff", difference)


def _print_difference(a: Path, b: Path, difference: CheckpointDifference) -> None:
    from sea_export.cli.terminal import console, plain_table

    table = plain_table("tensor", "largest difference", "relative (Frobenius)")
    for name, change in difference.tensors_changed.items():
        table.add_row(name, f"{change.maximum:.3g}", f"{change.relative:.3g}")
    if difference.tensors_changed:
        console.print(table)
    _print_names(f"only in {a}", (*difference.tensors_only_in_a, *difference.files_only_in_a))
    _print_names(f"only in {b}", (*difference.tensors_only_in_b, *difference.files_only_in_b))
    _print_names("other shape or dtype", difference.tensors_of_other_form)
    _print_names("other contents", (*difference.files_changed, *difference.metadata_changed))
    console.print(
        f"{len(difference.tensors_changed)} tensors differ; {difference.tensors_identical} tensors and "
        f"{difference.files_identical} files are identical."
    )


def _print_gguf_difference(a: Path, b: Path, difference: GgufDifference) -> None:
    from sea_export.cli.terminal import console, plain_table

    table = plain_table("tensor", "type in A", "type in B", "largest difference", "relative (Frobenius)")
    for name, (one, other, change) in difference.tensors_changed.items():
        table.add_row(name, one.type.name, other.type.name, f"{change.maximum:.3g}", f"{change.relative:.3g}")
    if difference.tensors_changed:
        console.print(table)
    _print_names(f"only in {a}", (*difference.tensors_only_in_a, *difference.keys_only_in_a))
    _print_names(f"only in {b}", (*difference.tensors_only_in_b, *difference.keys_only_in_b))
    _print_names("other shape", difference.tensors_of_other_shape)
    _print_names("other value", difference.keys_changed)
    console.print(
        f"{len(difference.tensors_changed)} tensors differ; {difference.tensors_identical} tensors and "
        f"{difference.keys_identical} keys of the metadata are identical."
    )


def _print_names(label: str, names: Iterable[str]) -> None:
    from sea_export.cli.terminal import console
    from sea_export.errors import printable

    for name in names:
        console.print(f"{label}: {printable(name)}", soft_wrap=True)
