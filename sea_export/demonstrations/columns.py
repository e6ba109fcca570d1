"""What the columns of a table of demonstrations mean.

A convention names the columns that a row must have and reads a prompt, a positive and a negative completion out of
them. :func:`recognise` picks the first that fits.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from sea_export.demonstrations import bbq_rows
from sea_export.demonstrations.tables import Row
from sea_export.errors import InputError

__all__ = ["ColumnFormat", "Fields", "Reading", "recognise"]

Message = tuple[str, object]

_SHOWN_COLUMNS, _SHOWN_LETTERS = 20, 60


@dataclass(frozen=True)
class Fields:
    """The column names that the user gave; None means: recognise.

    Attributes:
        prompt: Column of the prompts.
        positive: Column of the positive completions.
        negative: Column of the negative completions.
    """

    prompt: str | None = None
    positive: str | None = None
    negative: str | None = None


@dataclass(frozen=True)
class Reading:
    """What a convention makes of one row.

    Attributes:
        contrast: Prompt, positive and negative completion; None where the row has none and is left out.
        remark: Something to be counted over the rows and reported once, or None.
    """

    contrast: tuple[str, str, str] | None
    remark: str | None = None


@dataclass(frozen=True)
class ColumnFormat:
    """A way to lay out demonstrations in columns.

    Attributes:
        name: What users call it; empty for this project's own.
        columns: The columns that a row must have.
        read: Reads one row; its second argument says where the row stands, for messages.
    """

    name: str
    columns: tuple[str, ...]
    read: Callable[[Row, str], Reading]

    def __str__(self) -> str:
        return "/".join(self.columns) + (f" ({self.name})" if self.name else "")


def recognise(columns: Collection[str], fields: Fields, source: str) -> ColumnFormat:
    """Pick the convention that a table follows.

    Args:
        columns: The table's column names.
        fields: Column names that take the place of a convention's own.
        source: What the table is called in messages.

    Returns:
        The first known convention all of whose columns are there.

    Raises:
        InputError: A named column is missing, or no convention fits.
    """
    for name in (fields.prompt, fields.positive, fields.negative):
        if name is not None and name not in columns:
            raise InputError(f"{source}: there is no column {name!r}; its columns are {_listed(columns)}.")
    known = tuple(_column_formats(fields))
    for convention in known:
        if set(convention.columns) <= set(columns):
            return convention
    raise InputError(
        f"{source}: its columns ({_listed(columns)}) follow no known convention: {'; '.join(map(str, known))}. "
        "Name the columns with --prompt-field, --positive-field and --negative-field."
    )


def _column_formats(fields: Fields) -> Iterator[ColumnFormat]:
    """The known conventions, first choice first, with the user's column names in place of their own."""
    for name, prompt, positive, negative in (
        ("", "prompt", "positive", "negative"),
        ("preference data", "prompt", "chosen", "rejected"),
        ("HaluEval", "question", "right_answer", "hallucinated_answer"),
    ):
        columns = (fields.prompt or prompt, fields.positive or positive, fields.negative or negative)
        yield ColumnFormat(name, columns, partial(_read_triple, columns))
    if fields == Fields():
        yield ColumnFormat("conversations", ("chosen", "rejected"), partial(_read_triple, (None, "chosen", "rejected")))
        yield ColumnFormat("BBQ", _BBQ_COLUMNS, _read_bbq)


def _listed(columns: Collection[str]) -> str:
    shown = [_short(str(column)) for column in list(columns)[:_SHOWN_COLUMNS]]
    more = len(columns) - len(shown)
    return ", ".join([*shown, *([f"{more} more"] if more else [])]) or "none"


def _short(name: str) -> str:
    """A name from a file, of which a message shows no more than some words."""
    return name if len(name) <= _SHOWN_LETTERS else f"{name[:_SHOWN_LETTERS]}…"


def _cell(row: Row, column: str, where: str) -> Any:
    if column not in row:
        raise InputError(f"{where}: there is no column {column!r}, which other rows have.")
    return row[column]


def _text(value: object, what: str, where: str) -> str:
    """The value, checked to be text that a tokenizer can read."""
    if value is None or (isinstance(value, str) and not value.strip()):
        raise InputError(f"{where}: {what} is empty. Fill it in or remove the row.")
    if not isinstance(value, str):
        raise InputError(f"{where}: {what} must be text, not {type(value).__name__}.")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise InputError(f"{where}: {what} holds half of a surrogate pair, which is not text.") from None
    return value


# Three columns, of text or of conversations


def _read_triple(columns: tuple[str | None, str, str], row: Row, where: str) -> Reading:
    """Read a prompt, a positive and a negative column; completions and prompts may be lists of messages.

    In a conversation the completion is the last message, the assistant's, and the prompt is the user turn before
    it. What came earlier has no place in a demonstration.
    """
    prompt_column, positive_column, negative_column = columns
    positive, positive_context = _completion(row, positive_column, where)
    negative, negative_context = _completion(row, negative_column, where)
    if positive_context or negative_context:
        prompt, remark = _user_turn(positive_context, positive_column, where)
        if prompt != _user_turn(negative_context, negative_column, where)[0]:
            raise InputError(f"{where}: its two conversations answer different prompts.")
    elif prompt_column is None:
        raise InputError(f"{where}: there is no prompt: no column for it, and no user's message before the answers.")
    else:
        prompt, remark = _prompt(row, prompt_column, where)
    return Reading((prompt, positive, negative), remark)


def _prompt(row: Row, column: str, where: str) -> tuple[str, str | None]:
    """A prompt, and a remark where a conversation was cut down to it."""
    value = _cell(row, column, where)
    if isinstance(value, list):
        return _user_turn(_messages(value, column, where), column, where)
    return _text(value, f"column {column!r}", where), None


def _completion(row: Row, column: str, where: str) -> tuple[str, list[Message]]:
    """A completion, and the messages before it where it ends a conversation."""
    value = _cell(row, column, where)
    if not isinstance(value, list):
        return _text(value, f"column {column!r}", where), []
    messages = _messages(value, column, where)
    if not messages or messages[-1][0] != "assistant":
        raise InputError(f"{where}: the conversation in column {column!r} must end with the assistant's message.")
    return _text(messages[-1][1], f"the last message in column {column!r}", where), messages[:-1]


def _messages(value: list[object], column: str, where: str) -> list[Message]:
    """Roles and contents of a list of messages."""
    messages = []
    for message in value:
        if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys():
            raise InputError(f"{where}: column {column!r} is a list, but not of messages with role and content.")
        messages.append((message["role"], message["content"]))
    return messages


def _user_turn(messages: Sequence[Message], column: str, where: str) -> tuple[str, str | None]:
    """The user turn that a conversation ends with, and a remark where anything stands before it."""
    if not messages or messages[-1][0] != "user":
        raise InputError(f"{where}: the conversation in column {column!r} has no user's message before the answer.")
    remark = "have messages before the last user turn, which are left out" if messages[1:] else None
    return _text(messages[-1][1], f"the last user turn in column {column!r}", where), remark


# BBQ


_BBQ_TEXTS = ("context", "question", *bbq_rows.ANSWERS)
_BBQ_COLUMNS = (*_BBQ_TEXTS, "label", "question_polarity", "answer_info", "additional_metadata")


def _read_bbq(row: Row, where: str) -> Reading:
    """Read a row of BBQ: what the context supports against what a stereotype suggests.

    Where the context itself supports the answer that the stereotype suggests, there is nothing to tell apart.
    """
    text = {column: _text(_cell(row, column, where), f"column {column!r}", where) for column in _BBQ_TEXTS}
    suggested = bbq_rows.suggested_answer(row, where)
    if suggested is None:
        return Reading(None, "are left out: their groups do not tell which answer the stereotype suggests")
    supported = bbq_rows.right_answer(row, where)
    if supported == suggested:
        return Reading(None, "are left out: their context supports the very answer that the stereotype suggests")
    return Reading((f"{text['context']} {text['question']}", text[supported], text[suggested]))
