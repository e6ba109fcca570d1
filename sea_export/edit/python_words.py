"""Errors in the words of Python: `target=` and `force=True`, where the command line says `--target` and `--force`.

Errors are written once, in the words of the command line. What a program in Python calls translates them.
"""

from __future__ import annotations

import functools
import re
import typing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import Any, ParamSpec, TypeVar

from sea_export.demonstrations.demonstration_options import DemonstrationOptions
from sea_export.errors import SeaExportError
from sea_export.model.run_options import RunOptions
from sea_export.options import CaptureOptions, EditOptions, ExportOptions, FitOptions, option_name

__all__ = ["in_python", "python_words", "speaks_python"]

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")

_CLASSES: tuple[Any, ...] = (FitOptions, CaptureOptions, EditOptions, ExportOptions, RunOptions, DemonstrationOptions)
_OPTION = re.compile(r"(?<![\w-])--(no-)?([a-z][a-z-]*[a-z])(:| +[\w.%:-]*\w)?")
_NUMBER = re.compile(r"-?\d+(\.\d+)?")


def in_python(message: str) -> str:
    """A message with options in the words of Python.

    Args:
        message: as it is written for the command line.
    """
    return _OPTION.sub(_argument, message)


@contextmanager
def python_words() -> Iterator[None]:
    """A context whose errors are told in the words of Python."""
    try:
        yield
    except SeaExportError as error:
        error.args = (in_python(str(error)),)
        raise


def speaks_python(function: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]:
    """The same function, with its errors in the words of Python.

    Args:
        function: a function of the public API.
    """

    @functools.wraps(function)
    def call(*arguments: _Arguments.args, **named: _Arguments.kwargs) -> _Result:
        with python_words():
            return function(*arguments, **named)

    return call


@functools.cache
def _known() -> dict[str, tuple[bool, tuple[str, ...]]]:
    """Option -> whether it is a switch, and the values that it may have."""
    known = {}
    for kind in _CLASSES:
        types_of = typing.get_type_hints(kind)
        for item in (one for one in fields(kind) if "help" in one.metadata):
            switch = types_of[item.name] in (bool, bool | None)
            known[option_name(item)[2:]] = switch, tuple(item.metadata["choices"] or ())
    return known


def _argument(found: re.Match[str]) -> str:
    negated, option, rest = found[1], found[2], found[3] or ""
    switch, choices = _known().get(option, (False, ()))
    name, value = option.replace("-", "_"), rest.strip()
    if rest == ":":
        return f"{name}:"
    if switch or negated:
        return f"{name}={not negated}{rest}"
    if value in choices:
        return f'{name}="{value}"'
    return f"{name}={value}" if _NUMBER.fullmatch(value) else f"{name}={rest}"
