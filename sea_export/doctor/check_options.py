"""The options of a check of demonstrations."""

from __future__ import annotations

from dataclasses import dataclass

from sea_export.demonstrations.demonstration_options import DemonstrationOptions
from sea_export.errors import InputError
from sea_export.options import FitOptions, check_values, option, same_option, seed_option

__all__ = ["AGAINST", "CheckOptions"]

AGAINST = ("truthfulqa", "bbq", "crows-pairs", "demonstrations")


@dataclass(frozen=True)
class CheckOptions:
    """How demonstrations are read, and what they are compared with."""

    against: tuple[str, ...] = option(
        (),
        f"Rows that the demonstrations must not contain, NAME=FILE; NAME is {', '.join(AGAINST[:-1])} or "
        f"{AGAINST[-1]}. May be repeated.",
        metavar="NAME=FILE",
    )
    likeness: float = option(0.6, "With --against: from which likeness of two prompts on, 1 for the same words.")
    layer: int | None = option(
        None, "With MODEL: the decoder layer whose activations are looked at; by default the middle one.", minimum=0
    )
    template: str = same_option(FitOptions, "template")
    prompt_field: str | None = same_option(DemonstrationOptions, "prompt_field")
    positive_field: str | None = same_option(DemonstrationOptions, "positive_field")
    negative_field: str | None = same_option(DemonstrationOptions, "negative_field")
    limit: int | None = same_option(DemonstrationOptions, "limit")
    skip_bad_rows: bool = same_option(DemonstrationOptions, "skip_bad_rows")
    seed: int = seed_option("Seed of --limit.")

    def __post_init__(self) -> None:
        check_values(self)
        if not 0 < self.likeness <= 1:
            raise InputError(f"--likeness: {self.likeness} is no likeness. Give a number above 0 and at most 1.")
        for one in self.against:
            name, _, file = one.partition("=")
            if name not in AGAINST or not file:
                raise InputError(f"--against: {one!r} is not NAME=FILE with a NAME of {', '.join(AGAINST)}.")

    def demonstrations(self, source: str) -> DemonstrationOptions:
        """How the demonstrations of a source are read."""
        return DemonstrationOptions(
            source, self.prompt_field, self.positive_field, self.negative_field, self.limit, self.skip_bad_rows
        )
