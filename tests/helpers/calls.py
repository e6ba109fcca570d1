"""Counts the calls of functions, whichever modules have imported them."""

from __future__ import annotations

import functools
import importlib
import pkgutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest

import sea_export

__all__ = ["counted_calls"]


@contextmanager
def counted_calls(
    functions: Mapping[str, Callable[..., Any]], counts: Mapping[str, Callable[..., bool]] | None = None
) -> Iterator[Counter[str]]:
    """Counts calls while the context is open.

    Every module of the package that holds one of the functions, under whatever name, holds one that counts instead. A
    class method is replaced in its class.

    Args:
        functions: the functions, by the names that they are counted under.
        counts: for some of them, whether a call counts: asked with the arguments of the call. All count otherwise.

    Yields:
        the numbers of calls so far, by name.
    """
    for module in pkgutil.walk_packages(sea_export.__path__, "sea_export."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)  # so that no module imports a counting function that it would keep
    numbers = Counter(dict.fromkeys(functions, 0))
    with pytest.MonkeyPatch.context() as patch:
        for name, function in functions.items():
            _replace(patch, function, _counter(numbers, name, (counts or {}).get(name)))
        yield numbers


def _counter(numbers: Counter[str], name: str, counts: Callable[..., bool] | None) -> Callable[..., None]:
    def count(*arguments: Any, **keywords: Any) -> None:
        numbers[name] += counts is None or counts(*arguments, **keywords)

    return count


def _replace(patch: pytest.MonkeyPatch, function: Callable[..., Any], count: Callable[..., None]) -> None:
    owner = getattr(function, "__self__", None)  # the class of a class method
    whole = function if owner is None else function.__func__  # type: ignore[attr-defined]

    @functools.wraps(whole)
    def call(*arguments: Any, **keywords: Any) -> Any:
        count(*(arguments if owner is None else arguments[1:]), **keywords)
        return whole(*arguments, **keywords)

    if owner is not None:
        patch.setattr(owner, function.__name__, classmethod(call))
        return
    modules = [module for name, module in sys.modules.items() if name.partition(".")[0] == "sea_export"]
    places = [(module, name) for module in modules for name, value in vars(module).items() if value is function]
    assert places, f"no module of the package holds {function.__qualname__}"
    for module, name in places:
        patch.setattr(module, name, call)
