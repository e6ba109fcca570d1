"""The error of a format that has no place for the constant that an edit adds, and what to do about it.

A fit can do without a constant (`--center linear`). What was imported or extracted adds what it adds.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sea_export.errors import InputError

__all__ = ["NoPlaceForConstantError", "advice_on_constants"]


class NoPlaceForConstantError(InputError):
    """There is no place for the constant of an edit."""

    def __init__(self, subject: object, problem: str, choices: str = "--center linear") -> None:
        """Tells what to do about the edit of a fit.

        Args:
            subject: the module, the weight or the file that has no place.
            problem: why, without a full stop.
            choices: what to choose for a fit.
        """
        super().__init__(f"{subject}: {problem}. Choose {choices}.")
        self.subject, self.problem = subject, problem


@contextmanager
def advice_on_constants(*, fitted: bool) -> Iterator[None]:
    """A context in which that error tells what helps for the edit at hand.

    Args:
        fitted: whether all of the edit was fitted.

    Raises:
        InputError: there is no place for the constant of an edit that was not fitted.
    """
    try:
        yield
    except NoPlaceForConstantError as error:
        if fitted:
            raise
        raise InputError(
            f"{error.subject}: {error.problem}. The edit was not fitted, so that it cannot do without the constant. "
            "Choose --format custom-code, which adds it at run time."
        ) from error
