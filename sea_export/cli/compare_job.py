"""What `compare` does, and how answers are printed side by side."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from sea_export.cli.evaluate_job import opened_loaded_model
from sea_export.cli.terminal import console, waiting
from sea_export.errors import InputError
from sea_export.evaluation.evaluation_options import CompareOptions
from sea_export.evaluation.side_by_side import Comparison, Piece, answer_prompts, compare_answers, load_prompts
from sea_export.evaluation.side_by_side_page import comparison_page
from sea_export.model.load_model import quiet_transformers
from sea_export.model.run_options import RunOptions
from sea_export.text import visible

__all__ = ["run_comparison"]


def run_comparison(base: str, output: str, options: CompareOptions, run: RunOptions) -> None:
    """`sea-export compare`."""
    quiet_transformers()
    page = options.html
    if page is not None and not page.resolve().parent.is_dir():
        raise InputError(f"{page} cannot be written: its directory does not exist")
    prompts = list(options.own_prompts)
    if options.prompts is not None or not prompts:
        prompts += load_prompts(options.prompts)
    answers, names = [], []
    for model in (base, output):
        with opened_loaded_model(model, run) as loaded, waiting(f"{loaded.name} answers"):
            given = answer_prompts(
                loaded.model,
                loaded.tokenizer,
                prompts,
                template=options.template,
                new_tokens=options.new_tokens,
            )
        answers.append(given)
        names.append(loaded.name)
    comparisons = [compare_answers(*row) for row in zip(prompts, *answers, strict=True)]
    _print(names, comparisons)
    if page is not None:
        page.write_text(comparison_page(names[0], names[1], comparisons), encoding="utf-8")
        console.print(f"Wrote the page {page}.")


def _print(names: Sequence[str], comparisons: Sequence[Comparison]) -> None:
    table = Table("prompt", *names, show_lines=True)
    for one in comparisons:
        table.add_row(one.prompt, _marked(one.base, "red", "[-", "-]"), _marked(one.edited, "green", "{+", "+}"))
    console.print(table)
    console.print(f"{sum(one.differs for one in comparisons)} of {len(comparisons)} answers differ.")


def _marked(pieces: Sequence[Piece], color: str, before: str, after: str) -> Text:
    """An answer with its own words underlined and coloured, or in brackets where there is no terminal to do that."""
    text = Text()
    for piece in pieces:
        shown = visible(piece.text)
        if not piece.changed:
            text.append(shown)
        elif console.is_terminal:
            text.append(shown, style=f"bold underline {color}")
        else:
            words = shown.rstrip()
            text.append(f"{before}{words}{after}{shown[len(words) :]}")
    return text
