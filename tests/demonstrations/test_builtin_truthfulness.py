"""The built-in truthfulness demonstrations: complete, and free of shortcuts other than the truth itself."""

from __future__ import annotations

import json
import re
from collections import Counter
from importlib import resources
from statistics import mean

import pytest

Triple = dict[str, str]


@pytest.fixture(scope="module")
def triples() -> list[Triple]:
    lines = resources.files("sea_export.data").joinpath("truthfulness.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in lines.splitlines()]


def is_negated(answer: str) -> bool:
    return re.search(r"\b(no|not|never|cannot|\w+n't)\b", answer.lower()) is not None


def test_every_triple_is_complete_and_contrastive(triples: list[Triple]) -> None:
    assert len(triples) >= 600
    for triple in triples:
        assert set(triple) == {"prompt", "positive", "negative", "kind"}
        assert all(value and value == " ".join(value.split()) for value in triple.values())
        assert triple["prompt"].endswith("?")
        assert triple["positive"] != triple["negative"]


def test_there_are_several_kinds_of_many_triples(triples: list[Triple]) -> None:
    kinds = Counter(triple["kind"] for triple in triples)
    assert set(kinds) == {"misconception", "place", "negation", "number", "unanswerable"}
    assert min(kinds.values()) >= 80


def test_answers_are_short_full_sentences(triples: list[Triple]) -> None:
    for answer in (triple[side] for triple in triples for side in ("positive", "negative")):
        assert answer[0].isupper()
        assert answer.endswith(".")
        assert 5 <= len(answer.split()) <= 16


def test_prompts_and_answers_are_unique(triples: list[Triple]) -> None:
    assert len({triple["prompt"] for triple in triples}) == len(triples)
    answers = [triple[side] for triple in triples for side in ("positive", "negative")]
    assert len(set(answers)) == len(answers)


def test_answer_length_does_not_tell_positive_from_negative(triples: list[Triple]) -> None:
    words = [len(triple["positive"].split()) - len(triple["negative"].split()) for triple in triples]
    characters = [len(triple["positive"]) - len(triple["negative"]) for triple in triples]
    assert max(map(abs, words)) <= 2
    assert abs(mean(words)) <= 0.3
    assert abs(mean(characters)) <= 2


def test_negation_does_not_tell_positive_from_negative(triples: list[Triple]) -> None:
    negated_positives = sum(is_negated(triple["positive"]) for triple in triples)
    negated_negatives = sum(is_negated(triple["negative"]) for triple in triples)
    assert min(negated_positives, negated_negatives) > 0
    assert abs(negated_positives - negated_negatives) <= 0.02 * len(triples)
