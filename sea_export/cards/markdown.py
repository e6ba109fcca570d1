"""Markdown in which text of unknown origin is shown as it is.

Names, licenses, metrics and settings come from other people's files. What is put into a card is escaped unless it is of
the class `Markdown`, which this module makes. The marks are those of CommonMark and of the extensions of GitHub and the
Hub: tables, strikethrough, mathematics, automatic links, mentions and emoji.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from sea_export.text import visible

__all__ = ["Markdown", "escaped", "markdown", "python_text", "table"]

_MARKS = re.compile(
    r"""
    [\\`*\[\]<>|#$~@]            # marks wherever they stand
    | (?<![^\W_])_ | _(?![^\W_]) # not within a word
    | &(?=[#\w]+;)               # an entity
    | :(?=//|\w+:)               # an address or an emoji
    | (?<=www)\.                 # an address
    | ^[-+](?=\s|-|$) | ^=      # a list, a line or an underlined heading
    """,
    re.VERBOSE | re.IGNORECASE,
)
_NUMBERED = re.compile(r"^(\d+)([.)])(?=\s|$)")


class Markdown(str):
    """Text that is Markdown already, and is not escaped again."""

    __slots__ = ()


def escaped(value: object) -> Markdown:
    """A value as Markdown that shows it in one line.

    Args:
        value: Markdown, which stays as it is; or anything else, whose text is shown without a meaning as markup.
    """
    if isinstance(value, Markdown):
        return value
    line = visible(" ".join(str(value).split()))
    return Markdown(_NUMBERED.sub(r"\1\\\2", _MARKS.sub(r"\\\g<0>", line)))


def markdown(text: str, *values: object) -> Markdown:
    """Markdown with values in it.

    Args:
        text: Markdown, in which `{}` stands for each value.
        values: see `escaped`.
    """
    return Markdown(text.format(*map(escaped, values)))


def table(header: Sequence[object], rows: Sequence[Sequence[object]]) -> Markdown:
    """A table.

    Args:
        header: the names of the columns.
        rows: the cells: see `escaped`.
    """
    lines = [map(escaped, header), ["---"] * len(header), *(map(escaped, row) for row in rows)]
    return Markdown("\n".join(f"| {' | '.join(cells)} |" for cells in lines))


def python_text(text: str) -> Markdown:
    """A text as Python code, for a block of code.

    Args:
        text: any text.
    """
    return Markdown(json.dumps(visible(text), ensure_ascii=False))
