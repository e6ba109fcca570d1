"""The two ways in which a job can end badly, and the exit status that each one has."""

from __future__ import annotations

__all__ = ["InputError", "SeaExportError", "first_line", "printable", "reason"]

_MAXIMUM_LENGTH = 1000


class SeaExportError(Exception):
    """The job failed (exit status 1). The message is one or two sentences for the user."""

    exit_code = 1

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


class InputError(SeaExportError):
    """Bad usage or bad input (exit status 2): found before work starts and before anything is written."""

    exit_code = 2


def first_line(error: BaseException) -> str:
    """The first line of a library's error, without punctuation at its end, to be quoted in one of our sentences."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".: ")


def reason(error: BaseException) -> str:
    """What the system or a library says is wrong, to be quoted in an error of ours: of which file, if that is known."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror} ({error.filename})" if error.filename else error.strerror
    return first_line(error)


def printable(text: str) -> str:
    """Text that may quote somebody else's file, as it can be shown: in one line that is not endless."""
    if len(text) > 2 * _MAXIMUM_LENGTH:
        text = text[:_MAXIMUM_LENGTH] + text[-_MAXIMUM_LENGTH:]
    shown = "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)
    if len(shown) <= _MAXIMUM_LENGTH:
        return shown
    return f"{shown[: _MAXIMUM_LENGTH // 2]} … {shown[-_MAXIMUM_LENGTH // 2 :]}"
