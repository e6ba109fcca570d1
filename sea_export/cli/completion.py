"""What a shell offers where a command takes a text. Fixed choices and paths are offered by click itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import click
from click.shell_completion import CompletionItem

from sea_export.demonstrations.load import BUILTIN
from sea_export.doctor.check_options import AGAINST
from sea_export.evaluation.benchmark_names import BENCHMARKS, DAMAGE, GENERATIONS
from sea_export.options import FitOptions

__all__ = ["Completer", "complete_files", "completer"]

Completer = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]

_LAYERS = (FitOptions.layers, "last:6", "first:6", "signature:6", "all")
_WORDS: dict[str, Sequence[str]] = {
    "--layers": _LAYERS,
    "--benchmark": (*(f"{name}=" for name in (*BENCHMARKS, *GENERATIONS)), DAMAGE),
    "--demonstrations": tuple(f"builtin:{name}" for name in BUILTIN),
    "--device": ("auto", "cpu", "cuda", "mps"),
    "--pick": ("best", "knee"),
}
"""Option -> what it is often given. It takes other values too."""
_ROWS_TO_AVOID = "NAME=FILE"
_FILES = ("--against", "--base", "--judge", "--model", "--neutral-text", "--prompts", "--text")
"""Options whose text is usually a path."""


def completer(option: str, metavar: str | None) -> Completer | None:
    """What a shell offers for an option whose values are texts; None for nothing.

    Args:
        option: its name, with its hyphens.
        metavar: the name of its value in the help text.
    """
    if option in _WORDS:
        return partial(_complete_words, _WORDS[option])
    if metavar == _ROWS_TO_AVOID:
        return partial(_complete_words, [f"{name}=" for name in AGAINST])
    return complete_files if option in _FILES else None


def complete_files(context: click.Context, parameter: click.Parameter, start: str) -> list[CompletionItem]:
    """Offers files and directories, for what may be one of them or the name of something on the Hub."""
    return [CompletionItem(start, type="file")]


def _complete_words(
    words: Sequence[str], context: click.Context, parameter: click.Parameter, start: str
) -> list[CompletionItem]:
    """Offers those of some words that go on from what is written; files where none does."""
    return [CompletionItem(one) for one in words if one.startswith(start)] or [CompletionItem(start, type="file")]
