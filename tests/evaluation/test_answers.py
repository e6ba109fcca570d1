"""What is told of an answer without a judge, by hand."""

from __future__ import annotations

import pytest

from sea_export.evaluation.answers import REFUSAL_OPENINGS, is_loop, is_refusal, repeated_share


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't help with that.",
        "I’m sorry.",
        "I cannot answer.",
        "**I'm unable to** say.",
        '"I have no comment."',
        "AS AN AI language model, I know nothing.",
        "I cannot",
    ],
)
def test_refusals(text: str) -> None:
    assert is_refusal(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "The moon is made of rock. I'm sorry.",
        "I don't know.",
        "Sorry is a word.",
        "I can tell.",
        "As an aid to memory, count them.",
        "I cannoneer.",
    ],
)
def test_no_refusals(text: str) -> None:
    assert not is_refusal(text)


def test_openings_are_written_as_they_are_compared() -> None:
    assert all(opening == opening.lower() and "’" not in opening for opening in REFUSAL_OPENINGS)
    assert all(is_refusal(opening) for opening in REFUSAL_OPENINGS)


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        ([], False),
        ([7] * 11, False),  # too few tokens
        ([7] * 12, True),
        ([1, 2, 3] + [7] * 12, True),
        ([7] * 12 + [1], False),  # not to the end
        ([1, 2, 3, 4, 5] * 2, False),  # two copies
        ([1, 2, 3, 4, 5] * 3, True),
        ([9, *([1, 2, 3, 4, 5] * 3), 1, 2], True),  # the last copy is broken off
        ([*range(100)], False),
        ([*range(50)] * 3, True),
        ([*([1, 2, 3, 4] * 2), 1, 2, 3], False),  # the third copy is not whole
    ],
)
def test_loops(tokens: list[int], expected: bool) -> None:
    assert is_loop(tokens) is expected


def test_repeated_n_grams() -> None:
    assert repeated_share([]) == repeated_share([1, 1, 1]) == repeated_share([1, 2, 3, 4]) == 0
    assert repeated_share([1, 1, 1, 1, 1]) == 1 / 2
    assert repeated_share([1, 2, 3, 4, 1, 2, 3, 4]) == pytest.approx(1 / 5)
    assert repeated_share([1, 2, 1, 2], size=2) == pytest.approx(1 / 3)
