"""What is wrong with demonstrations, as far as their texts show it.

An edit learns whatever tells positive from negative completions. If that is their length, or how they begin, it learns
that instead of what was meant.
"""

from __future__ import annotations

import logging
import math
import unicodedata
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sea_export.demonstrations.demonstration import Demonstration
from sea_export.demonstrations.likeness import nearest_texts

__all__ = ["Finding", "leaks", "log_findings", "text_findings"]

logger = logging.getLogger(__name__)

_DUPLICATES = "duplicates"
_NAMED = 3
# Fewer demonstrations than this show no pattern.
_FEWEST = 20
# A pattern tells so large a share of the pairs apart, and chance does that with at most this probability.
_SHARE, _CHANCE = 0.75, 0.001


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong."""

    name: str
    problem: str
    advice: str
    rows: tuple[str, ...] = ()
    """Where: the sources of the demonstrations, or their positions from 1. Empty if it is about all of them."""

    def __str__(self) -> str:
        named = ", ".join(self.rows[:_NAMED])
        more = f" and {len(self.rows) - _NAMED:,} more" if len(self.rows) > _NAMED else ""
        return f"{self.name}: {self.problem}{f' ({named}{more})' if named else ''}. {self.advice}"

    def to_dict(self) -> dict[str, Any]:
        """As an object of JSON."""
        return {**asdict(self), "rows": list(self.rows)}


def text_findings(demonstrations: Sequence[Demonstration]) -> list[Finding]:
    """What the texts of demonstrations show.

    Args:
        demonstrations: n of them.
    """
    found = [
        _duplicates(demonstrations),
        _contradictions(demonstrations),
        _lengths(demonstrations),
        _pattern(demonstrations, "first words", "begin", lambda text: text.casefold().split()[:1]),
        _pattern(demonstrations, "last characters", "end", lambda text: "".join(text.split())[-1:].isalnum()),
        _writing_systems(demonstrations),
    ]
    return [one for one in found if one is not None]


def log_findings(demonstrations: Sequence[Demonstration]) -> None:
    """Warns of what the texts of demonstrations show, before an edit is fitted on them."""
    for finding in text_findings(demonstrations):
        if finding.name != _DUPLICATES:  # of which the reading has warned
            logger.warning("%s", finding)


def leaks(
    demonstrations: Sequence[Demonstration], texts: Sequence[str], benchmark: str, limit: float
) -> Finding | None:
    """Demonstrations whose prompt is near a row of a benchmark.

    Args:
        demonstrations: n of them.
        texts: those of the benchmark, at least one.
        benchmark: its name.
        limit: the likeness that is too much: see `sea_export.demonstrations.likeness.nearest_texts`.
    """
    found = nearest_texts([one.prompt for one in demonstrations], texts)
    near = [row for row, (likeness, _) in enumerate(found) if likeness > limit]
    if not near:
        return None
    first = near[0]
    return Finding(
        "leakage",
        f"the prompts of {_count(len(near))} are nearly rows of {benchmark}: {demonstrations[first].prompt[:80]!r} is "
        f"{texts[found[first][1]][:80]!r}",
        "Leave them out, or measure on something else: what was fitted on shows no effect.",
        _rows(demonstrations, near),
    )


def _duplicates(demonstrations: Sequence[Demonstration]) -> Finding | None:
    seen: set[tuple[str, ...]] = set()
    repeated = []
    for row, one in enumerate(demonstrations):
        texts = tuple(map(_plain, (one.prompt, one.positive, one.negative)))
        if texts in seen:
            repeated.append(row)
        seen.add(texts)
    if not repeated:
        return None
    return Finding(
        _DUPLICATES,
        f"{_count(len(repeated))} already there",
        "Remove them: they count several times, and may be fitted on and held out at once.",
        _rows(demonstrations, repeated),
    )


def _contradictions(demonstrations: Sequence[Demonstration]) -> Finding | None:
    positive = {(_plain(one.prompt), _plain(one.positive)) for one in demonstrations}
    rows = [row for row, one in enumerate(demonstrations) if (_plain(one.prompt), _plain(one.negative)) in positive]
    if not rows:
        return None
    return Finding(
        "contradictions",
        f"{_count(len(rows))} with a negative completion that is a positive one of the same prompt elsewhere",
        "Look whether positive and negative were swapped.",
        _rows(demonstrations, rows),
    )


def _lengths(demonstrations: Sequence[Demonstration]) -> Finding | None:
    pairs = [(len(one.positive.split()), len(one.negative.split())) for one in demonstrations]
    longer, shorter = sum(a > b for a, b in pairs), sum(a < b for a, b in pairs)
    told = max(longer, shorter)
    if not _is_pattern(told, longer + shorter, len(pairs)):
        return None
    positive, negative = (sum(pair[side] for pair in pairs) / len(pairs) for side in (0, 1))
    return Finding(
        "lengths",
        f"positive completions have {positive:.1f} words, negative ones {negative:.1f}, and {told / len(pairs):.0%} of "
        f"positive ones are the {'longer' if longer > shorter else 'shorter'} of the two",
        "An edit learns length from them. Write both sides equally long.",
    )


def _pattern(
    demonstrations: Sequence[Demonstration], name: str, verb: str, feature: Callable[[str], Any]
) -> Finding | None:
    """Whether a feature of a completion tells which of the two it is, by how often each side of the others has it."""
    pairs = [(_hashable(feature(one.positive)), _hashable(feature(one.negative))) for one in demonstrations]
    surplus: Counter[Hashable] = Counter()
    for positive, negative in pairs:
        surplus[positive] += 1
        surplus[negative] -= 1
    told = wrong = 0
    for positive, negative in pairs:
        if positive != negative:
            difference = (surplus[positive] - 1) - (surplus[negative] + 1)  # without the pair itself
            told, wrong = told + (difference > 0), wrong + (difference < 0)
    if not _is_pattern(told, told + wrong, len(pairs)):
        return None
    return Finding(
        name,
        f"how a completion {verb}s tells which one it is in {told / len(pairs):.0%} of the demonstrations",
        f"An edit learns that from them. Write completions of both sides that {verb} in the same ways.",
    )


def _is_pattern(told: int, differing: int, count: int) -> bool:
    """Whether so many of all pairs are told apart, and more than chance tells apart (a sign test)."""
    if count < _FEWEST or told < _SHARE * count:
        return False
    chance = sum(math.comb(differing, k) for k in range(told, differing + 1)) / 2**differing
    return chance < _CHANCE


def _writing_systems(demonstrations: Sequence[Demonstration]) -> Finding | None:
    """Demonstrations of which a text is in another writing system than most of them."""
    systems = [
        {_writing_system(text) for text in (one.prompt, one.positive, one.negative)} - {""} for one in demonstrations
    ]
    counts = Counter(system for own in systems for system in own)
    if len(counts) < 2:
        return None
    usual = counts.most_common(1)[0][0]
    others = [row for row, own in enumerate(systems) if own - {usual}]
    if len(others) > len(demonstrations) / 5:
        return None  # a set of several languages
    return Finding(
        "languages",
        f"{_count(len(others))} in another writing system than the others ({usual.lower()})",
        "Fit them by themselves if they are meant, because an edit learns the language from them too.",
        _rows(demonstrations, others),
    )


def _writing_system(text: str) -> str:
    """That of most letters of a text, by their names in Unicode: LATIN, CYRILLIC, CJK; empty without letters."""
    names = Counter(unicodedata.name(letter, "").split(" ")[0] for letter in text if letter.isalpha())
    return names.most_common(1)[0][0] if names else ""


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())


def _hashable(value: Any) -> Hashable:
    return tuple(value) if isinstance(value, list) else value


def _count(number: int) -> str:
    return f"{number:,} demonstration{'s' if number > 1 else ''}"


def _rows(demonstrations: Sequence[Demonstration], rows: Sequence[int]) -> tuple[str, ...]:
    return tuple(demonstrations[row].source or f"demonstration {row + 1}" for row in rows)
