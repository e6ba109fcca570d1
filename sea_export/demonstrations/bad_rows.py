"""Rows that cannot be used: the first one is an error, or all of them are left out and told."""

from __future__ import annotations

import logging
from typing import NoReturn

from sea_export.errors import InputError

__all__ = ["BadRows", "UnusableRow"]

_NAMED = 3

logger = logging.getLogger(__name__)


class UnusableRow(InputError):
    """One row cannot be used, and others may be."""


class BadRows:
    """What is done about rows that cannot be used.

    Args:
        skip: whether they are left out. Otherwise the first one is raised.
    """

    def __init__(self, *, skip: bool) -> None:
        self._skip = skip
        self._first: list[str] = []
        self._count = 0

    def add(self, error: InputError) -> None:
        """Leaves out a row.

        Args:
            error: why it cannot be used.

        Raises:
            InputError: rows are not to be left out.
        """
        if not self._skip:
            raise InputError(f"{str(error).rstrip('.')}, or leave such rows out with --skip-bad-rows.") from error
        self._count += 1
        if len(self._first) < _NAMED:
            self._first.append(str(error).partition(". ")[0].rstrip("."))

    def tell(self, label: str, total: int) -> None:
        """Warns of the rows that were left out, if there are any, and names the first three.

        Args:
            label: the name of their table.
            total: the number of all its rows.
        """
        if self._count:
            logger.warning(
                "%s: %d of %d rows cannot be used and are left out. %s.",
                label,
                self._count,
                total,
                "; ".join(self._first) + ("; …" if self._count > len(self._first) else ""),
            )

    def fail(self, label: str) -> NoReturn:
        """Raises InputError for a table all of whose rows were left out, or that has none."""
        why = f"none of its rows can be used ({self._first[0]})" if self._first else "it has no rows"
        raise InputError(f"{label}: {why}. Give at least 2.")
