"""The options that say how strong an edit is, and what is measured of it."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from sea_export.demonstrations.neutral_text import load_texts
from sea_export.errors import InputError
from sea_export.options import FitOptions, check_strength, check_values, option

__all__ = ["EffectOptions"]

logger = logging.getLogger(__name__)

_REASONABLE_STRENGTH = 5.0
"""Of a spectral edit. At 2 a direction that it drops has changed its sign."""


@dataclass(frozen=True)
class EffectOptions:
    """The strength or the budget that sets it, and what effect and damage are measured on."""

    max_kl: float = option(
        0.1,
        "Damage budget: the strength is the largest one whose mean KL from the base, in nats per token, is within it "
        "on prose and on the base's own answers.",
    )
    strength: float | None = option(
        None, "s in I + s (M - I), instead of the one that --max-kl finds: 0 edits nothing, 1 is the method."
    )
    held_out: float = option(
        0.2, "Share of the demonstrations, at most 200, that is not fitted on: the effect is measured on it."
    )
    neutral_text: str | None = option(
        None, "Prose for the damage: a .txt file, or a table with a column text; by default a built-in set."
    )
    measure: bool = option(True, "Measure effect and damage. Without, --strength must be given.")

    def __post_init__(self) -> None:
        check_values(self)
        if not 0 < self.max_kl < float("inf"):
            raise InputError(f"--max-kl: {self.max_kl} is no budget. Give a number above 0.")
        if self.strength is not None:
            check_strength(self.strength)
        if not 0 <= self.held_out < 1:
            raise InputError(f"--held-out: {self.held_out} is no share. Give a number from 0 to below 1.")
        if not self.measure and self.strength is None:
            raise InputError("--no-measure: --max-kl cannot find the strength without measuring. Give --strength too.")

    @property
    def held_out_share(self) -> float:
        """The share that is held out: nothing if nothing is measured."""
        return self.held_out if self.measure else 0.0

    def check_texts(self) -> None:
        """Raises InputError if the prose for the damage cannot be read, which would else be told after the fit."""
        if self.measure and self.neutral_text is not None:
            load_texts(self.neutral_text)

    def check(self, fit: FitOptions) -> None:
        """Raises InputError for a fit that cannot get its strength afterwards. Warns of a strength out of reason."""
        if self.strength is not None and fit.method == "spectral" and abs(self.strength) > _REASONABLE_STRENGTH:
            logger.warning(
                "--strength: %g is far above 1, which is the method itself. Such an edit drowns what it edits, and "
                "rounding alone can make the verification fail.",
                self.strength,
            )
        if fit.sequential and self.strength is None:
            raise InputError(
                "--sequential: it reads each layer behind edits of the earlier ones, whose strength must be known. "
                "Give --strength."
            )
