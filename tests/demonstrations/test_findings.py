"""Planted faults of demonstrations are found, and clean demonstrations are left in peace."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from sea_export.demonstrations.demonstration import Demonstration
from sea_export.demonstrations.findings import leaks, text_findings
from sea_export.demonstrations.load import load_demonstrations

WORDS = ["bird", "stone", "river", "tree", "poet", "cheese", "moon", "king", "door", "lamp", "road", "wheel"]


def clean() -> list[Demonstration]:
    """Demonstrations whose sides differ in meaning alone."""
    made = []
    for number in range(48):
        first, second = WORDS[number % 12], WORDS[(number + number // 12 + 1) % 12]
        true, false = (f"It is a {first} of old.", f"It is a {second} of old.")
        prompt = f"What stands at place {number} beside the {first}?"
        made.append(Demonstration(prompt, true, false, source=f"rows.jsonl, row {number + 1}"))
    return made


def names(demonstrations: list[Demonstration]) -> list[str]:
    return [one.name for one in text_findings(demonstrations)]


def test_clean_ones_have_no_findings() -> None:
    assert names(clean()) == []


@pytest.mark.parametrize("source", ["builtin:truthfulness", "builtin:fairness"])
def test_built_in_ones_have_no_findings(source: str) -> None:
    assert names(list(load_demonstrations(source))) == []


def test_duplicates_are_found_whatever_their_spaces_and_capitals() -> None:
    rows = clean()
    rows.append(replace(rows[3], prompt=f"  {rows[3].prompt.upper()} ", source="rows.jsonl, row 49"))
    (found,) = text_findings(rows)
    assert (found.name, found.rows) == ("duplicates", ("rows.jsonl, row 49",))
    assert str(found).startswith("duplicates: 1 demonstration already there (rows.jsonl, row 49). Remove")


def test_a_row_that_says_the_opposite_of_another_is_found() -> None:
    rows = clean()
    rows.append(replace(rows[5], positive=rows[5].negative, negative=rows[5].positive, source="row 49"))
    (found,) = text_findings(rows)
    assert (found.name, found.rows) == ("contradictions", ("rows.jsonl, row 6", "row 49"))


@pytest.mark.parametrize("side", ["positive", "negative"])
def test_a_longer_side_is_found(side: str) -> None:
    rows = [
        replace(one, **{side: getattr(one, side).replace("It is", "It is, as all of them say,")}) if number % 8 else one
        for number, one in enumerate(clean())
    ]
    (found,) = text_findings(rows)
    assert found.name == "lengths"
    assert ("longer" if side == "positive" else "shorter") in found.problem


def both(positive: Callable[[int, str], str], negative: Callable[[int, str], str]) -> list[Demonstration]:
    """The clean ones, with both completions changed by their number."""
    return [
        replace(one, positive=positive(number, one.positive), negative=negative(number, one.negative))
        for number, one in enumerate(clean())
    ]


def test_how_completions_begin_is_found() -> None:
    assert names(both(lambda _, text: f"No, {text}", lambda _, text: f"Yes, {text}")) == ["first words"]


def test_how_completions_end_is_found() -> None:
    assert names(both(lambda _, text: text, lambda _, text: text.removesuffix("."))) == ["last characters"]


def test_a_first_word_that_is_as_frequent_on_both_sides_is_none() -> None:
    said = ("No", "Yes")
    rows = both(lambda number, text: f"{said[number % 2]}, {text}", lambda number, text: f"{said[~number % 2]}, {text}")
    assert names(rows) == []


def test_first_words_that_never_occur_twice_tell_nothing() -> None:
    assert names(both(lambda number, text: f"A{number} {text}", lambda number, text: f"B{number} {text}")) == []


def test_another_writing_system_is_found_but_not_a_set_of_several() -> None:
    rows = clean()
    rows[7] = replace(rows[7], positive="Это птица, и больше ничего.")
    (found,) = text_findings(rows)
    assert (found.name, found.rows) == ("languages", ("rows.jsonl, row 8",))
    half = both(lambda number, text: "Это она." if number % 2 else text, lambda number, text: text)
    assert "languages" not in names(half)


def test_few_demonstrations_show_no_pattern() -> None:
    assert names([replace(one, positive=f"No. {one.positive}") for one in clean()[:10]]) == []


def test_a_leak_is_found_by_its_words() -> None:
    rows = clean()
    texts = ["Why is the sea salt?", "What stands beside the bird at place 0?"]
    found = leaks(rows, texts, "a benchmark", 0.9)
    assert found is not None
    assert found.rows == (rows[0].source,)
    assert "a benchmark" in found.problem
    assert leaks(rows, texts[:1], "a benchmark", 0.9) is None
