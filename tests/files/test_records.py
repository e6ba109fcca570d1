"""Objects made again from the records that manifests keep of them."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import pytest

from sea_export.demonstrations.demonstration import DemonstrationOrigin
from sea_export.errors import InputError
from sea_export.files.records import from_record
from sea_export.options import CaptureOptions, EditOptions, FitOptions
from tests.helpers.messages import naming

FIT = FitOptions(
    layers="1-2",
    target="both",
    center="affine",
    capture=CaptureOptions(position="mean", seed=7),
    edit=EditOptions(positive_rank=3, strength=0.5),
)


def recorded(kind: Any) -> Any:
    """What a JSON file keeps of an object."""
    return json.loads(json.dumps(asdict(kind)))


@pytest.mark.parametrize("one", [FIT, FitOptions(), DemonstrationOrigin("rows.jsonl", limit=5)], ids=repr)
def test_an_object_is_what_its_record_gives(one: Any) -> None:
    assert from_record(type(one), recorded(one)) == one


def test_fields_that_a_record_does_not_have_get_their_defaults() -> None:
    assert from_record(FitOptions, {"layers": "all"}) == FitOptions(layers="all")


def test_an_integer_may_stand_for_a_float() -> None:
    assert from_record(EditOptions, {"strength": 1}) == EditOptions(strength=1.0)


@pytest.mark.parametrize(
    ("changes", "facts"),
    [
        ({"wavelength": 3}, ["wavelength"]),
        ({"layers": 3}, ["layers", "3"]),
        ({"sequential": "yes"}, ["sequential", "'yes'"]),
        ({"edit": 3}, ["EditOptions"]),
        ({"edit": {"strength": True}}, ["strength", "True"]),
        ({"edit": {"positive_rank": 1.5}}, ["positive_rank", "1.5"]),
        ({"capture": {"batch_tokens": 0}}, ["--batch-tokens", "0"]),
        ({"target": "head"}, ["--target", "'head'"]),
    ],
    ids=str,
)
def test_a_record_that_is_wrong_is_refused(changes: dict[str, Any], facts: list[str]) -> None:
    with pytest.raises(InputError, match=naming(*facts)):
        from_record(FitOptions, recorded(FIT) | changes)


def test_a_record_that_is_no_object_is_refused() -> None:
    with pytest.raises(InputError, match=naming("FitOptions")):
        from_record(FitOptions, ["layers"])
