"""What the columns of a table of demonstrations mean.

A column format names the columns that a row must have, and reads a prompt, a positive and a negative completion from
them. `recognise` chooses the first one that fits.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from sea_export.demonstrations import bbq_rows
from sea_export.demonstrations.shared_beginning import shared_beginning
from sea_export.demonstrations.tables import Row
from sea_export.errors import InputError

__all__ = ["ColumnFormat", "Fields", "Reading", "recognise"]

Message = tuple[str, object]

_SHOWN_COLUMNS, _SHOWN_LETTERS = 20, 60
_EARLIER = "have messages before the last user turn, which are left out"
_SYSTEM_COLUMNS = ("system", "system_prompt")
# Of UltraFeedback and of the sets that are made like it.
_SCORE_COLUMNS = (
    ("score_chosen", "score_rejected"),
    ("chosen_score", "rejected_score"),
    ("chosen_rating", "rejected_rating"),
    ("chosen-rating", "rejected-rating"),
)


@dataclass(frozen=True)
class Fields:
    """The column names that the user gave; None for columns that are recognised by their names.

    Attributes:
        prompt: the column of the prompts.
        positive: the column of the positive completions.
        negative: the column of the negative completions.
    """

    prompt: str | None = None
    positive: str | None = None
    negative: str | None = None


@dataclass(frozen=True)
class Reading:
    """What a column format reads from one row.

    Attributes:
        contrast: prompt, positive and negative completion; None if the row has none and is left out.
        remark: what is counted over the rows and reported once, or None.
    """

    contrast: tuple[str, str, str] | None
    remark: str | None = None


@dataclass(frozen=True)
class ColumnFormat:
    """A way to lay out demonstrations in columns.

    Attributes:
        name: what users call it; empty for this project's own.
        columns: the columns that a row must have.
        read: reads one row. Its second argument says where the row is, for messages.
    """

    name: str
    columns: tuple[str, ...]
    read: Callable[[Row, str], Reading]

    def __str__(self) -> str:
        return "/".join(self.columns) + (f" ({self.name})" if self.name else "")


def recognise(columns: Collection[str], fields: Fields, source: str) -> ColumnFormat:
    """Chooses the column format of a table.

    Args:
        columns: the column names of the table.
        fields: column names that replace those of a column format.
        source: the name of the table in messages.

    Returns:
        The first known column format whose columns are all there.

    Raises:
        InputError: a named column is missing, or no column format fits.
    """
    named = [name for name in (fields.prompt, fields.positive, fields.negative) if name is not None]
    if len(set(named)) < len(named):
        raise InputError(
            f"{source}: two of --prompt-field, --positive-field and --negative-field name one column. Name three."
        )
    for name in named:
        if name not in columns:
            raise InputError(f"{source}: it has no column {name!r}. Choose one of its columns: {_listed(columns)}.")
    known = tuple(_column_formats(fields))
    for column_format in known:
        if set(column_format.columns) <= set(columns):
            return column_format
    raise InputError(
        f"{source}: its columns ({_listed(columns)}) are not those of a known column format "
        f"({'; '.join(map(str, known))}). Name the columns with --prompt-field, --positive-field and --negative-field."
    )


def _column_formats(fields: Fields) -> Iterator[ColumnFormat]:
    """The known column formats, first choice first, with the column names that the user gave."""
    for name, prompt, positive, negative in (
        ("", "prompt", "positive", "negative"),
        ("preference data", "prompt", "chosen", "rejected"),
        ("Orca DPO", "question", "chosen", "rejected"),
        ("HaluEval", "question", "right_answer", "hallucinated_answer"),
    ):
        columns = (fields.prompt or prompt, fields.positive or positive, fields.negative or negative)
        yield ColumnFormat(name, columns, partial(_read_triple, columns, fields.prompt is not None))
    if fields.prompt is None:
        pair = (fields.positive or "chosen", fields.negative or "rejected")
        yield ColumnFormat("conversations", pair, partial(_read_triple, (None, *pair), False))
    if fields == Fields():
        yield ColumnFormat("BBQ", _BBQ_COLUMNS, _read_bbq)


def _listed(columns: Collection[str]) -> str:
    shown = [_short(str(column)) for column in list(columns)[:_SHOWN_COLUMNS]]
    more = len(columns) - len(shown)
    return ", ".join([*shown, *([f"{more} more"] if more else [])]) or "none"


def _short(name: str) -> str:
    """The first letters of a name from a file, because it may be very long."""
    return name if len(name) <= _SHOWN_LETTERS else f"{name[:_SHOWN_LETTERS]}…"


def _cell(row: Row, column: str, where: str) -> Any:
    if column not in row:
        raise InputError(f"{where}: it has no column {column!r}, which other rows have. Add it or remove the row.")
    return row[column]


def _text(value: object, what: str, where: str) -> str:
    """The value. Raises InputError if it is not text that a tokenizer can read."""
    if value is None or (isinstance(value, str) and not value.strip()):
        raise InputError(f"{where}: {what} is empty. Fill it in or remove the row.")
    if not isinstance(value, str):
        raise InputError(f"{where}: {what} is of type {type(value).__name__}, not text. Change it or remove the row.")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise InputError(f"{where}: {what} has half of a surrogate pair, which is not text. Change it.") from None
    return value


# Three columns, of text or of conversations


def _read_triple(columns: tuple[str | None, str, str], named: bool, row: Row, where: str) -> Reading:
    """Reads a prompt, a positive and a negative column. Completions and prompts may be lists of messages.

    In a conversation the completion is the last message, the assistant's, and the prompt is the user turn before it,
    unless the user has `named` a column of prompts. Earlier messages are left out.
    """
    prompt_column, positive_column, negative_column = columns
    if _is_tie(row):
        return Reading(None, "are left out, because by their scores neither answer is better")
    positive, positive_context = _completion(row, positive_column, where)
    negative, negative_context = _completion(row, negative_column, where)
    if (positive_context or negative_context) and not named:
        prompt, remark = _user_turn(positive_context, positive_column, where)
        if prompt != _user_turn(negative_context, negative_column, where)[0]:
            raise InputError(f"{where}: its two conversations answer different prompts. Change one or remove the row.")
    elif prompt_column is None:
        shared = shared_beginning(positive, negative, alone=not _other_texts(row, positive_column, negative_column))
        if shared is None:
            raise InputError(
                f"{where}: it has no prompt: no column of prompts, no user's message before the answers, and no "
                f"question that both begin with. Name its column, of {_listed(row.keys())}, with --prompt-field."
            )
        prompt, positive, negative = shared.prompt, shared.positive, shared.negative
        remark = _EARLIER if shared.earlier_turns else None
    else:
        prompt, remark = _prompt(row, prompt_column, where)
    return Reading((prompt, positive, negative), remark or _system_remark(row))


def _other_texts(row: Row, *columns: str) -> bool:
    """Whether a row has texts in other columns."""
    return any(isinstance(value, str) and value.strip() for column, value in row.items() if column not in columns)


def _system_remark(row: Row) -> str | None:
    found = (row.get(column) for column in _SYSTEM_COLUMNS)
    return (
        "have a system text, which is left out" if any(isinstance(one, str) and one.strip() for one in found) else None
    )


def _is_tie(row: Row) -> bool:
    """Whether a row has scores of its two answers, and they are equal."""
    return any(
        _number(row.get(chosen)) is not None and _number(row.get(chosen)) == _number(row.get(rejected))
        for chosen, rejected in _SCORE_COLUMNS
    )


def _number(value: object) -> float | None:
    try:
        return float(value) if isinstance(value, (int, float, str)) else None
    except (ValueError, OverflowError):
        return None


def _prompt(row: Row, column: str, where: str) -> tuple[str, str | None]:
    """A prompt, and a remark if it is a part of a conversation."""
    value = _cell(row, column, where)
    if isinstance(value, list):
        return _user_turn(_messages(value, column, where), column, where)
    return _text(value, f"column {column!r}", where), None


def _completion(row: Row, column: str, where: str) -> tuple[str, list[Message]]:
    """A completion, and the messages before it if it ends a conversation."""
    value = _cell(row, column, where)
    if not isinstance(value, list):
        return _text(value, f"column {column!r}", where), []
    messages = _messages(value, column, where)
    if not messages or messages[-1][0] != "assistant":
        raise InputError(
            f"{where}: the conversation in column {column!r} does not end with the assistant's message. Change it or "
            "remove the row."
        )
    return _text(messages[-1][1], f"the last message in column {column!r}", where), messages[:-1]


def _messages(value: list[object], column: str, where: str) -> list[Message]:
    """The roles and contents of a list of messages."""
    messages = []
    for message in value:
        if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys():
            raise InputError(
                f"{where}: column {column!r} is a list, but not of messages with role and content. Change it or remove "
                "the row."
            )
        messages.append((message["role"], message["content"]))
    return messages


def _user_turn(messages: Sequence[Message], column: str, where: str) -> tuple[str, str | None]:
    """The user turn at the end of a conversation, and a remark if there are messages before it."""
    if not messages or messages[-1][0] != "user":
        raise InputError(
            f"{where}: the conversation in column {column!r} has no user's message before the answer. Add one or "
            "remove the row."
        )
    remark = _EARLIER if messages[1:] else None
    return _text(messages[-1][1], f"the last user turn in column {column!r}", where), remark


# BBQ


_BBQ_TEXTS = ("context", "question", *bbq_rows.ANSWERS)
_BBQ_COLUMNS = (*_BBQ_TEXTS, "label", "question_polarity", "answer_info", "additional_metadata")


def _read_bbq(row: Row, where: str) -> Reading:
    """Reads a row of BBQ: the answer that the context supports against the one that a stereotype suggests.

    If the context supports the very answer that the stereotype suggests, the row has no contrast.
    """
    text = {column: _text(_cell(row, column, where), f"column {column!r}", where) for column in _BBQ_TEXTS}
    suggested = bbq_rows.suggested_answer(row, where)
    if suggested is None:
        return Reading(None, "are left out, because their groups do not say which answer the stereotype suggests")
    supported = bbq_rows.right_answer(row, where)
    if supported == suggested:
        return Reading(
            None, "are left out, because their context supports the very answer that the stereotype suggests"
        )
    return Reading((f"{text['context']} {text['question']}", text[supported], text[suggested]))
