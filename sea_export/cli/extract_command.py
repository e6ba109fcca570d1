"""`sea-export extract`: the edit of low rank between two checkpoints, where there is one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from sea_export.cli.click_options import single_option
from sea_export.cli.json_output import give_result, json_option
from sea_export.cli.reporting import reported
from sea_export.model.run_options import RunOptions

if TYPE_CHECKING:
    from sea_export.extraction.extract import Extraction
    from sea_export.extraction.writer_change import WriterChange

_SHOWN_VALUES = 4
_SHOWN_RANKS = (1, 2, 4, 8, 16, 32)
_SHOWN_OTHERS = 20


@click.command("extract")
@click.argument("a")
@click.argument("b")
@click.argument("edit", type=click.Path(path_type=Path))
@single_option(RunOptions, "trust_remote_code")
@single_option(RunOptions, "threads")
@click.option("--overwrite", is_flag=True, help="Replace an edit that sea-export wrote before.")
@reported
@json_option
def command(a: str, b: str, edit: Path, trust_remote_code: bool, threads: int | None, overwrite: bool) -> None:
    """Find the edit of low rank between the checkpoints A and B, and write it to the directory EDIT.

    A is the base and B what somebody made of it: Hub ids, local directories, or .gguf files of one architecture. For
    example:

    \b
    sea-export extract org/model somebody/model-edited edit
    sea-export save edit adapter --base org/model --format adapter

    For each MLP and attention block whose weights differ, and for the embedding, it prints the singular values of the
    difference, and how far the nearest matrix of each rank is from it. If rounding to the storage explains all that an
    edit leaves, the edit is written. Else, as after a full fine-tuning, it exits with 1 and says what no edit of low
    rank makes.
    """
    from sea_export.export.output import check_output, check_room, staged_output
    from sea_export.model.location import locate_model

    check_output(edit, overwrite=overwrite)
    locations = [locate_model(model) for model in (a, b)]

    from contextlib import ExitStack  # nothing before this needs torch, which takes seconds to import

    from sea_export.cli.layer_table import print_layers
    from sea_export.cli.opening import begin_computing
    from sea_export.cli.printing import print_commands
    from sea_export.cli.progress import counting_progress
    from sea_export.cli.terminal import console, waiting
    from sea_export.edit.summary import log_warnings
    from sea_export.extraction.extract import extract_from_bases
    from sea_export.model.base import open_base

    begin_computing(threads)
    with ExitStack() as stack:
        with waiting(f"Opening {a} and {b}"):
            first, second = (
                stack.enter_context(open_base(location, trust_remote_code=trust_remote_code)) for location in locations
            )
        check_room(edit, (*first.paths, *second.paths), needed_bytes=0)
        found = extract_from_bases(first, second, counting_progress)
    _print_changes(found)
    give_result("extract", found)  # before the edit, because it says why there may be none
    result = found.edit
    with staged_output(edit, overwrite=overwrite) as staging:
        result.save(staging)
    log_warnings(result.summary)
    print_layers(result.summary)
    console.print(f"Saved the edit to {edit}.", soft_wrap=True)
    trust = ("--trust-remote-code",) if trust_remote_code else ()
    print_commands(
        {
            "Try it": ("compare", a, str(edit), *trust),
            "Bake it": ("save", str(edit), "OUTPUT", "--base", a, *trust),
        }
    )


def _print_changes(found: Extraction) -> None:
    from sea_export.cli.terminal import console, plain_table
    from sea_export.errors import printable

    ranks = [rank for rank in _SHOWN_RANKS if any(rank <= one.rank for one in found.writers)] or [1]
    table = plain_table(
        "layer", "rank", "singular values", "next one", "rounding", *(f"error at {rank}" for rank in ranks), "left"
    )
    for one in found.writers:
        table.add_row(*_cells(one), *(f"{one.error(rank):.1%}" for rank in ranks), _left(one))
    if found.writers:
        console.print(table)
        for line in (
            "rank: number of singular values of W_B - W_A above what rounding makes",
            "next one, rounding: the first singular value that does not count, and the largest that rounding makes",
            "error at K: how far the nearest matrix of rank K is from W_B - W_A, relative to its norm",
            "left: root mean square of W_B minus the folded edit, in halves of a unit of the storage; one rounding "
            "leaves at most 1",
        ):
            console.print(f"  {line}", soft_wrap=True)
    for name, change in list(found.others.items())[:_SHOWN_OTHERS]:
        told = "only one of them has it, or in another form" if change is None else f"relative difference {change:.3g}"
        console.print(f"no edit of outputs changes {printable(name)}: {told}", soft_wrap=True)
    if len(found.others) > _SHOWN_OTHERS:
        console.print(f"and {len(found.others) - _SHOWN_OTHERS} more tensors.")


def _cells(change: WriterChange) -> tuple[str, ...]:
    values, rank = change.singular_values, change.rank
    shown = " ".join(f"{value:.3g}" for value in values[: min(rank, _SHOWN_VALUES)])
    last = f" … {values[rank - 1]:.3g}" if rank > _SHOWN_VALUES else ""
    beyond = f"{values[rank]:.2g}" if rank < len(values) else ""
    return str(change.target), str(rank), shown + last, beyond, f"{change.rounding:.2g}"


def _left(change: WriterChange) -> str:
    return "" if change.half_units is None else f"{change.half_units:.2f}"
