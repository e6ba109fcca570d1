"""What `--benchmark` may name, told before anything is loaded. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Sequence

from sea_export.errors import InputError
from sea_export.files.nearest_name import meant

__all__ = [
    "BENCHMARKS",
    "DAMAGE",
    "FREE_PROMPTS",
    "GENERATIONS",
    "HELD_OUT",
    "TABLES",
    "TRUTHFULQA_GENERATION",
    "check_benchmark",
    "check_searched",
]

DAMAGE = "damage"
"""The benchmark that compares predictions on neutral text. It needs no file."""
HELD_OUT = "held-out demonstrations"
"""The label of the demonstrations that are measured and not fitted on."""
TRUTHFULQA_GENERATION = "truthfulqa-generation"
FREE_PROMPTS = "prompts"
BENCHMARKS = ("truthfulqa", "bbq", "crows-pairs", "multiple-choice")
"""Those that score completions."""
TABLES = (*BENCHMARKS, TRUTHFULQA_GENERATION)
"""The benchmarks whose rows are in a table."""
GENERATIONS = (TRUTHFULQA_GENERATION, FREE_PROMPTS)
"""The benchmarks in which models answer with text."""


def check_benchmark(text: str) -> None:
    """Refuses what is no benchmark of an evaluation.

    Args:
        text: `NAME`, `NAME=SOURCE` or `NAME:PROMPT=SOURCE`.

    Raises:
        InputError: there is no such benchmark, or its rows are missing.
    """
    _check(text, (*TABLES, FREE_PROMPTS, DAMAGE))


def check_searched(text: str) -> None:
    """Refuses what a search cannot improve.

    Args:
        text: see `check_benchmark`.

    Raises:
        InputError: see `check_benchmark`; or it is a benchmark that scores no completions.
    """
    name = text.partition("=")[0].partition(":")[0]
    choice = f"Choose one of {', '.join(BENCHMARKS)}."
    if name == DAMAGE:
        raise InputError(f"--benchmark: a search bounds the damage by --max-kl, and improves something else. {choice}")
    if name in GENERATIONS:
        raise InputError(f"--benchmark: a search scores completions, and {name} lets models answer. {choice}")
    _check(text, BENCHMARKS)


def _check(text: str, known: Sequence[str]) -> None:
    name, equals, source = text.partition("=")
    name, _, prompt = name.partition(":")
    if name not in known:
        raise InputError(
            f"--benchmark: there is no benchmark {name!r}{meant(name, known)}. Choose one of {', '.join(known)}."
        )
    if (name in TABLES and not source) or (equals and not source):
        raise InputError(
            f"--benchmark: {text} does not say where its rows are. Give {name}=FILE or {name}=org/dataset."
        )
    if name == DAMAGE and (equals or prompt):
        raise InputError(f"--benchmark: {text} names rows or a prompt, and {DAMAGE} has none. Give {DAMAGE} alone.")
