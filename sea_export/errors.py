"""The two kinds of errors, with their exit status, and texts of errors.

Every message has one form: `SUBJECT: what is wrong. What to do.` The subject is the file, the option, the model or the
layer that is wrong.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["InputError", "SeaExportError", "first_line", "printable", "reason", "refused_by_library"]

_MAXIMUM_LENGTH = 1000


class SeaExportError(Exception):
    """The job failed (exit status 1)."""

    exit_code = 1

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


class InputError(SeaExportError):
    """Bad usage or bad input (exit status 2). It is found before anything is written."""

    exit_code = 2


@contextmanager
def refused_by_library(problem: str, remedy: str = "") -> Iterator[None]:
    """A context in which a library reads files of unknown origin: every error of the library becomes an InputError.

    Args:
        problem: which file is wrong, and how, as the first part of the message: `FILE: what is wrong`.
        remedy: what to do, as a sentence; empty if the library says that.

    Raises:
        InputError: the problem, the first line of the library's error, and the remedy.
    """
    try:
        yield
    except InputError:
        raise
    except BaseException as error:
        # The tokenizers library panics at some regular expressions, and its panic is no Exception.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise InputError(f"{problem}: {first_line(error)}. {remedy}".rstrip()) from error


def first_line(error: BaseException) -> str:
    """The first line of a library's error, without punctuation at its end, to be quoted in a message."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".: ")


def reason(error: BaseException) -> str:
    """What the system or a library says is wrong, and with which file if that is known, to be quoted in a message."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror} ({error.filename})" if error.filename else error.strerror
    return first_line(error)


def printable(text: str) -> str:
    """Text that may quote somebody else's file, in one line of limited length without control characters."""
    if len(text) > 2 * _MAXIMUM_LENGTH:
        text = text[:_MAXIMUM_LENGTH] + text[-_MAXIMUM_LENGTH:]
    shown = "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)
    if len(shown) <= _MAXIMUM_LENGTH:
        return shown
    return f"{shown[: _MAXIMUM_LENGTH // 2]} … {shown[-_MAXIMUM_LENGTH // 2 :]}"
