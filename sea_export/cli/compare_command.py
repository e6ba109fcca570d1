"""`sea-export compare`: the same prompts, side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from sea_export.cli.click_options import options
from sea_export.cli.completion import complete_files
from sea_export.cli.json_output import give_result, json_option
from sea_export.cli.reporting import reported
from sea_export.evaluation.evaluation_options import CompareOptions
from sea_export.model.run_options import RunOptions

if TYPE_CHECKING:
    from sea_export.evaluation.side_by_side import ModelComparison


@click.command("compare")
@click.argument("base", shell_complete=complete_files)
@click.argument("output", shell_complete=complete_files)
@options(compare=CompareOptions, run=RunOptions)
@reported
@json_option
def command(base: str, output: str, compare: CompareOptions, run: RunOptions) -> None:
    """Answer the same prompts with BASE and with OUTPUT, greedily, and mark the words that differ.

    Each is a Hub id, a local directory, or a .gguf file; OUTPUT may be an export of any format, or the directory of an
    edit, which is applied to BASE at run time. Without prompts of yours there are some built-in ones.
    """
    from sea_export.evaluation.early_checks import check_comparison
    from sea_export.evaluation.prompts import load_prompts

    check_comparison(base, output, compare, run)  # here too, before torch is imported
    if compare.prompts is not None:
        load_prompts(compare.prompts)

    from sea_export.cli.opening import begin_computing
    from sea_export.cli.terminal import console, waiting
    from sea_export.evaluation.side_by_side import compare_models

    begin_computing(run.threads)
    comparison = compare_models(base, output, compare, run, waiting)
    _print_comparison(comparison)
    if compare.html is not None:
        comparison.save_page(compare.html)
        console.print(f"Wrote the page {compare.html}.")
    give_result("compare", comparison)


def _print_comparison(comparison: ModelComparison) -> None:
    from sea_export.cli.marked_pieces import marked
    from sea_export.cli.terminal import console, plain_table

    table = plain_table("prompt", comparison.base, comparison.edited, show_lines=True)
    for one in comparison.answers:
        table.add_row(
            one.prompt,
            marked(one.base, one.base_marks, "red", "[-", "-]"),
            marked(one.edited, one.edited_marks, "green", "{+", "+}"),
        )
    console.print(table)
    console.print(f"{sum(one.differs for one in comparison.answers)} of {len(comparison.answers)} answers differ.")
    if others := sum(not one.alike for one in comparison.answers):
        console.print(f"{others} of them have fewer than half of their words in common, and no words are marked there.")
