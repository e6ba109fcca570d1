"""Types of what JSON files hold, checked once where a file is read, so that everything after may rely on them."""

from __future__ import annotations

import sys
import types
import typing
from collections.abc import Iterable
from typing import Any

__all__ = ["type_problem"]

_LARGEST_INTEGER = 2**53
"""The largest up to which floats have all integers, so that every program reads the same number."""
_LARGEST_NUMBER = sys.float_info.max
_NAMES = {str: "text", bool: "true or false", int: "a whole number", float: "a number", type(None): "null"}


def type_problem(value: object, kind: Any, name: str) -> str | None:
    """What is wrong with a parsed JSON value, as a clause without a full stop; None if it is of its type.

    Args:
        value: the value.
        kind: its type: `str`, `bool`, `int`, `float` (which an integer fits too), `None`, `Any`, `list[...]`,
            `dict[str, ...]`, a TypedDict whose other entries are not checked, or a union of these.
        name: what the value is, for the clause.
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return None
    if origin in (typing.Union, types.UnionType):
        kinds = [one for one in arguments if one is not type(None)]
        if value is None and len(kinds) < len(arguments):
            return None
        problems = [type_problem(value, one, name) for one in kinds]
        return None if None in problems else problems[0]
    if typing.is_typeddict(kind):
        return _entries_problem(value, kind, name)
    if origin is list:
        if not isinstance(value, list):
            return f"{name} is not a list"
        return _first(type_problem(one, arguments[0], f"{name}[{place}]") for place, one in enumerate(value))
    if origin is dict:
        if not isinstance(value, dict):
            return f"{name} is not an object"
        return _first(type_problem(one, arguments[1], _inside(name, key)) for key, one in value.items())
    return None if _is_plain(value, kind) else f"{name} is not {_NAMES[kind]}"


def _entries_problem(value: object, kind: Any, name: str) -> str | None:
    """`type_problem` for an object whose entries are declared."""
    if not isinstance(value, dict):
        return f"{name} is not an object"
    if missing := sorted(kind.__required_keys__ - value.keys()):
        return f"{_inside(name, missing[0])} is missing"
    declared = typing.get_type_hints(kind)
    return _first(type_problem(value[key], one, _inside(name, key)) for key, one in declared.items() if key in value)


def _inside(name: str, key: str) -> str:
    return f"{name}.{key}" if name else key


def _first(problems: Iterable[str | None]) -> str | None:
    return next((problem for problem in problems if problem is not None), None)


def _is_plain(value: object, kind: type) -> bool:
    """Whether a value is a text, a truth value, or a number that is neither infinite nor too large."""
    if kind in (int, float) and isinstance(value, kind | int) and type(value) is not bool:
        # Not true of NaN, nor of an integer that is too large for a float.
        return abs(value) <= (_LARGEST_INTEGER if kind is int else _LARGEST_NUMBER)
    return type(value) is kind
