"""The built-in fairness demonstrations: complete, and free of shortcuts other than the stereotype itself."""

from __future__ import annotations

import json
import re
from collections import Counter
from importlib import resources
from statistics import mean

import pytest

CATEGORIES = {
    "age",
    "disability status",
    "gender identity",
    "nationality",
    "physical appearance",
    "race/ethnicity",
    "religion",
    "socio-economic status",
    "sexual orientation",
    "race x gender",
    "race x socio-economic status",
}
CONDITIONS = {"ambiguous", "disambiguated", "statement"}

Triple = dict[str, str]


@pytest.fixture(scope="module")
def triples() -> list[Triple]:
    lines = resources.files("sea_export.data").joinpath("fairness.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in lines.splitlines()]


def words(text: str) -> list[str]:
    return re.findall(r"[\w']+", text.lower())


def first_mention(answer: str, other: str, prompt: str) -> int:
    """Where the prompt first uses a content word that `answer` has and `other` lacks."""
    distinctive = {word for word in words(answer) if len(word) > 1} - set(words(other))
    return min(position for position, word in enumerate(words(prompt)) if word in distinctive)


def test_every_triple_is_complete_and_contrastive(triples: list[Triple]) -> None:
    assert len(triples) >= 400
    for triple in triples:
        assert set(triple) == {"prompt", "positive", "negative", "category", "condition"}
        assert all(value and value == " ".join(value.split()) for value in triple.values())
        assert triple["prompt"].endswith("?")
        assert triple["positive"] != triple["negative"]


def test_prompts_are_unique(triples: list[Triple]) -> None:
    assert len({triple["prompt"] for triple in triples}) == len(triples)


def test_every_category_has_both_conditions_in_balance(triples: list[Triple]) -> None:
    counts = Counter((triple["category"], triple["condition"]) for triple in triples)
    assert set(counts) == {(category, condition) for category in CATEGORIES for condition in CONDITIONS}
    assert min(counts.values()) >= 5
    for category in CATEGORIES:
        ambiguous, disambiguated = (counts[category, condition] for condition in ("ambiguous", "disambiguated"))
        assert ambiguous + disambiguated >= 10
        assert 0.35 <= ambiguous / (ambiguous + disambiguated) <= 0.65


@pytest.mark.parametrize("condition", sorted(CONDITIONS))
def test_answer_length_does_not_tell_positive_from_negative(triples: list[Triple], condition: str) -> None:
    differences = [
        len(triple["positive"].split()) - len(triple["negative"].split())
        for triple in triples
        if triple["condition"] == condition
    ]
    assert max(map(abs, differences)) <= 4
    assert abs(mean(differences)) <= 0.5


def test_order_of_mention_does_not_tell_the_answer(triples: list[Triple]) -> None:
    positive_first = [
        first_mention(triple["positive"], triple["negative"], triple["prompt"])
        < first_mention(triple["negative"], triple["positive"], triple["prompt"])
        for triple in triples
        if triple["condition"] == "disambiguated"
    ]
    assert 0.35 <= mean(positive_first) <= 0.65


def test_ambiguous_contexts_are_answered_in_many_words(triples: list[Triple]) -> None:
    answers = {triple["positive"] for triple in triples if triple["condition"] == "ambiguous"}
    assert len(answers) >= 25
