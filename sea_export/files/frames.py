"""Tables of results as data frames of pandas, which is imported only for them."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sea_export.errors import InputError

if TYPE_CHECKING:
    from pandas import DataFrame

__all__ = ["data_frame"]


def data_frame(rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | None = None) -> DataFrame:
    """A data frame.

    Args:
        rows: one mapping a row, from the name of a column to its value.
        columns: the names of the columns, in order; None for those of the first row.

    Raises:
        InputError: pandas is not installed.
    """
    if importlib.util.find_spec("pandas") is None:
        raise InputError("pandas: a data frame needs it, and it is not installed. Run pip install pandas.")
    import pandas

    return pandas.DataFrame([dict(row) for row in rows], columns=None if columns is None else list(columns))
