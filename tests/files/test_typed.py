"""Values of JSON files are checked against the types that are declared for them."""

from __future__ import annotations

from typing import Any, TypedDict

import pytest

from sea_export.files.typed import type_problem


class Required(TypedDict):
    name: str


class Record(Required, total=False):
    count: int
    share: float | None
    flags: list[bool]
    digests: dict[str, str]
    inner: list[Record]
    free: Any


GOOD: dict[str, Any] = {
    "name": "a",
    "count": 3,
    "share": 1,
    "flags": [True],
    "digests": {"a": "0"},
    "inner": [{"name": "b", "inner": []}],
    "free": [{}],
    "unknown": object(),
}


def test_a_value_of_its_type_has_no_problem() -> None:
    assert type_problem(GOOD, Record, "") is None
    assert type_problem({**GOOD, "share": None}, Record, "") is None


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"name": None}, "name is not text"),
        ({"name": ["a"]}, "name is not text"),
        ({"count": 1.0}, "count is not a whole number"),
        ({"count": True}, "count is not a whole number"),
        ({"count": 10**400}, "count is not a whole number"),
        ({"share": "1"}, "share is not a number"),
        ({"share": False}, "share is not a number"),
        ({"share": float("nan")}, "share is not a number"),
        ({"share": float("-inf")}, "share is not a number"),
        ({"share": 10**400}, "share is not a number"),
        ({"flags": None}, "flags is not a list"),
        ({"flags": [True, 1]}, "flags[1] is not true or false"),
        ({"digests": ["a"]}, "digests is not an object"),
        ({"digests": {"a": 0}}, "digests.a is not text"),
        ({"inner": [{}]}, "inner[0].name is missing"),
        ({"inner": [{"name": "b", "count": "c"}]}, "inner[0].count is not a whole number"),
        ({"inner": [3]}, "inner[0] is not an object"),
    ],
)
def test_a_value_of_another_type_is_named(change: dict[str, Any], problem: str) -> None:
    assert type_problem({**GOOD, **change}, Record, "") == problem


def test_what_must_be_there_is_named() -> None:
    assert type_problem({"count": 3}, Record, "") == "name is missing"
    assert type_problem([], Record, "record") == "record is not an object"
