"""The options of a search for settings."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from sea_export.errors import InputError
from sea_export.evaluation.benchmark_names import check_searched
from sea_export.options import (
    CENTERS,
    FORMS,
    GRADIENT_METHODS,
    METHODS,
    SITES,
    TARGETS,
    TEMPLATES,
    CaptureOptions,
    FitOptions,
    check_values,
    option,
    same_option,
    seed_option,
)
from sea_export.tuning.search_space import kinds_of

__all__ = ["TuneOptions"]

PICKS = ("best", "knee")
"""What `--pick` may be besides the number of a trial."""


@dataclass(frozen=True)
class TuneOptions:
    """What is searched, for what, and for how long."""

    benchmark: str | None = option(
        None,
        "What is to get better: see evaluate; by default demonstrations that are held out.",
        metavar="NAME[:PROMPT]=FILE",
    )
    held_out: float = option(
        0.3, "Without --benchmark: share of the demonstrations, at most 200, that is measured and not fitted."
    )
    metric: str | None = option(None, "Metric of the benchmark that is to get better; by default its main one.")
    max_kl: float = option(
        0.1,
        "Damage budget: the strength of every trial is the largest one whose mean KL from the base, in nats per token, "
        "is within it, or within a share of it.",
    )
    text: str | None = option(
        None, "Passages for the damage: a .txt file, or a table with a column text; default: built in."
    )
    trials: int = option(60, "Trials in all.", minimum=1)
    timeout: float | None = option(None, "Begin no further trial after so many seconds.")
    storage: Path | None = option(
        None,
        "Keep trials in this file, from which a search with equal settings goes on; by default OUTPUT.tune.journal.",
        path="file",
    )
    choosing: float = option(0.4, "Share of the rows to choose on; the others report.")
    methods: tuple[str, ...] = option((), "Try these only; repeatable.", METHODS, name="method")
    forms: tuple[str, ...] = option((), "Of gradient methods, try these only; repeatable.", FORMS, name="form")
    targets: tuple[str, ...] = option((), "Try these only; repeatable.", TARGETS, name="target")
    sites: tuple[str, ...] = option((), "Try these only; repeatable.", SITES, name="site")
    centers: tuple[str, ...] = option((), "Try these only; repeatable.", CENTERS, name="center")
    pick: str = option("best", "best, knee, or the number of a trial.")
    plot: Path | None = option(None, "Write a picture (PNG, PDF, SVG) of score against KL.", path="file")
    template: str = option(FitOptions.template, "How demonstrations become text.", TEMPLATES)
    batch_tokens: int = same_option(CaptureOptions, "batch_tokens")
    seed: int = seed_option("Seed of the search and of all samples.")

    def __post_init__(self) -> None:
        check_values(self)
        if self.benchmark is not None:
            check_searched(self.benchmark)
        gradients = not self.methods or any(method in GRADIENT_METHODS for method in self.methods)
        if self.forms and not gradients:
            raise InputError(f"--form: {', '.join(self.methods)} has one form only. Leave it out, or add a method.")
        kinds_of(self.methods or METHODS, self.forms or FORMS, self.centers or CENTERS)
        if self.pick not in PICKS and not self.pick.isdigit():
            raise InputError(f"--pick: {self.pick!r} is no choice. Choose best, knee, or the number of a trial.")
        if not 0 < self.max_kl < float("inf"):
            raise InputError(f"--max-kl: {self.max_kl} is no budget. Give a number above 0.")
        if self.timeout is not None and not 0 < self.timeout < float("inf"):
            raise InputError(f"--timeout: {self.timeout} is no time. Give a number of seconds above 0.")
        if not 0 < self.held_out < 1:
            raise InputError(f"--held-out: {self.held_out} is no share. Give a number between 0 and 1.")
        if not 0 < self.choosing < 1:
            raise InputError(f"--choosing: {self.choosing} is no share of the rows. Give a number between 0 and 1.")

    def record_file(self, output: Path) -> Path:
        """The file for settings and metrics of a search whose edit is baked into `output`, if no other one is named."""
        return Path(f"{output.resolve()}.tune.json")

    def kept_beside(self, output: Path) -> TuneOptions:
        """The same options, with the trials kept beside `output` if no other file is given."""
        return self if self.storage is not None else replace(self, storage=Path(f"{output.resolve()}.tune.journal"))
