"""Demonstrations that take no part in a fit, so that its effect can be measured on them."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from sea_export.demonstrations.demonstration import Demonstration, LoadedDemonstrations

__all__ = ["FEWEST", "HeldOut", "hold_out"]

FEWEST = 8
"""With fewer demonstrations held out, nothing is measured: an interval would say nothing."""
_MOST = 200


@dataclass(frozen=True)
class HeldOut:
    """Demonstrations in two parts, each in the order of the whole."""

    fitted: Sequence[Demonstration]
    """Those of the fit. They know where they were read if all of them do."""
    held_out: tuple[Demonstration, ...]
    """Those on which the effect is measured; empty if they would be too few."""
    kinds: tuple[str, ...]
    """The kinds that were held out as a whole; empty if the demonstrations have no kinds."""


def hold_out(demonstrations: Sequence[Demonstration], share: float, seed: int) -> HeldOut:
    """Splits demonstrations into those of a fit and those that are held out.

    Where they have kinds, whole kinds are held out, so that the effect is measured on another kind than was fitted: the
    smallest kinds, until the share is reached. Otherwise a seeded sample is held out.

    Args:
        demonstrations: all of them.
        share: the share to hold out, in [0, 1), of at most 200 demonstrations. With a share of 0, and where fewer than
            `FEWEST` would be held out, all of them are fitted.
        seed: of the sample.
    """
    wanted = min(_MOST, round(share * len(demonstrations)))
    if wanted < FEWEST:
        return HeldOut(demonstrations, (), ())
    kinds = _smallest_kinds(demonstrations, wanted)
    candidates = [index for index, one in enumerate(demonstrations) if not kinds or one.kind in kinds]
    chosen = set(random.Random(seed).sample(candidates, min(wanted, len(candidates))))
    out_of_fit = set(candidates) if kinds else chosen
    fitted: Sequence[Demonstration] = [one for index, one in enumerate(demonstrations) if index not in out_of_fit]
    if isinstance(demonstrations, LoadedDemonstrations):
        fitted = LoadedDemonstrations(fitted, replace(demonstrations.origin, held_out=share))
    return HeldOut(fitted, tuple(demonstrations[index] for index in sorted(chosen)), kinds)


def _smallest_kinds(demonstrations: Sequence[Demonstration], wanted: int) -> tuple[str, ...]:
    """The smallest kinds that together have so many demonstrations, but never all kinds; none if there is one kind."""
    sizes = Counter(one.kind for one in demonstrations)
    chosen: list[str] = []
    for kind in sorted(sizes, key=lambda kind: (sizes[kind], kind))[:-1]:
        if sum(sizes[one] for one in chosen) < wanted:
            chosen.append(kind)
    return tuple(sorted(chosen))
