"""Parameters of tests, of which only some run with the fast tests."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import pytest

UNMEASURED = ("--strength", "1", "--no-measure")
"""The options of a fit whose effect and damage are not what a test is about."""


def slow_but(fast: Collection[Any], parameters: Iterable[Any]) -> list[Any]:
    """All parameters in their order, those that are not among the fast ones marked as slow.

    Args:
        fast: the parameters that run with the fast tests too.
        parameters: all of them. A test with several arguments has them as tuples.
    """
    return [
        pytest.param(*(one if isinstance(one, tuple) else (one,)), marks=() if one in fast else pytest.mark.slow)
        for one in parameters
    ]
