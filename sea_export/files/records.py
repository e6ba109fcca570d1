"""Frozen dataclasses, made again from the JSON records that files keep of them (`dataclasses.asdict`)."""

from __future__ import annotations

import typing
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar

from sea_export.errors import InputError
from sea_export.files.typed import type_problem

__all__ = ["from_record"]

RecordedT = TypeVar("RecordedT")


def from_record(kind: type[RecordedT], record: object) -> RecordedT:
    """The object of which a file has a record. Fields that the record does not have get their defaults.

    Args:
        kind: its class, a dataclass whose fields are numbers, texts, truth values or None, or such dataclasses.
        record: the record, from anywhere.

    Raises:
        InputError: the record has fields that the class does not have, or a value is wrong.
    """
    if not isinstance(record, Mapping):
        raise InputError(f"{kind.__name__}: its record is not an object. Give a file that sea-export wrote.")
    declared = {item.name: item for item in fields(typing.cast(Any, kind))}
    if unknown := sorted(str(name) for name in record.keys() - declared.keys()):
        raise InputError(
            f"{', '.join(unknown)}: options that this version does not know, though the file has them. Upgrade "
            "sea-export."
        )
    annotations, values = typing.get_type_hints(kind), {}
    for name, value in record.items():
        nested: Any = declared[name].default_factory
        if is_dataclass(nested):
            values[name] = from_record(typing.cast("type[Any]", nested), value)
        elif type_problem(value, annotations[name], name) is None:
            values[name] = value
        else:
            raise InputError(f"{name}: {value!r} is not a value of this option. Give a file that sea-export wrote.")
    return kind(**values)
