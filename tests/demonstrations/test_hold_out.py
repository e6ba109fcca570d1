"""Which demonstrations take no part in a fit."""

from __future__ import annotations

from collections import Counter

import pytest

from sea_export.demonstrations.demonstration import Demonstration, LoadedDemonstrations
from sea_export.demonstrations.hold_out import FEWEST, hold_out
from sea_export.demonstrations.load import load_demonstrations


def rows(*sizes: int) -> list[Demonstration]:
    """Demonstrations of kinds of these sizes; of no kind if there is one size."""
    return [
        Demonstration(f"prompt {kind} {index}", "yes", "no", kind=f"kind {kind}" if len(sizes) > 1 else "")
        for kind, size in enumerate(sizes)
        for index in range(size)
    ]


def test_a_seeded_share_is_held_out() -> None:
    all_of_them = rows(100)
    split, same, other = (hold_out(all_of_them, 0.2, seed) for seed in (0, 0, 1))
    assert split == same != other
    assert (len(split.fitted), len(split.held_out)) == (80, 20)
    assert Counter([*split.fitted, *split.held_out]) == Counter(all_of_them)
    assert list(split.held_out) == [one for one in all_of_them if one in split.held_out]
    assert split.kinds == ()


def test_whole_kinds_are_held_out_the_smallest_first() -> None:
    split = hold_out(rows(50, 12, 30, 8), 0.2, 0)
    assert split.kinds == ("kind 1", "kind 3")
    assert {one.kind for one in split.held_out} == set(split.kinds)
    assert len(split.held_out) == 20
    assert {one.kind for one in split.fitted} == {"kind 0", "kind 2"}


def test_a_large_kind_is_measured_on_a_part_and_not_fitted_at_all() -> None:
    split = hold_out(rows(60, 40), 0.2, 0)
    assert len(split.held_out) == 20
    assert len(split.fitted) == 60
    assert {one.kind for one in split.held_out} == {"kind 1"}


def test_at_most_200_are_held_out() -> None:
    assert len(hold_out(rows(3000), 0.2, 0).held_out) == 200


@pytest.mark.parametrize("share", [0.0, (FEWEST - 1) / 30])
def test_nothing_is_held_out_where_it_would_say_nothing(share: float) -> None:
    all_of_them = rows(30)
    split = hold_out(all_of_them, share, 0)
    assert split.fitted is all_of_them
    assert split.held_out == ()


def test_those_of_the_fit_say_where_they_were_read_and_what_was_held_out() -> None:
    loaded = load_demonstrations("builtin:truthfulness")
    split = hold_out(loaded, 0.2, 0)
    assert isinstance(split.fitted, LoadedDemonstrations)
    assert split.fitted.origin.source == "builtin:truthfulness"
    assert split.fitted.origin.held_out == 0.2
    assert loaded.origin.held_out == 0
    assert split.kinds
