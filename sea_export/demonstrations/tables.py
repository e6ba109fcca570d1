"""Rows of a table: of a file of any common format, or of a dataset of the Hub."""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from sea_export.errors import InputError, first_line
from sea_export.files.nearest_name import meant, missing, neighbours
from sea_export.text import is_utf8

__all__ = ["Row", "Table", "check_source", "hub_dataset", "is_file_name", "open_table", "read_json_lines", "read_table"]

Row = Mapping[str, Any]
RowsOrErrors = Iterator[tuple[str, "Row | InputError"]]
"""Where each row is, and the row, or why there is none that can be read."""

_BATCH_ROWS = 1024
_LONGEST_CELL = 2**31 - 1
_HUB_SOURCE = re.compile(r"(?P<path>[\w.-]+/[\w.-]+)(:((?P<config>[^/@]+)/)?(?P<split>[^/@]+))?(@(?P<revision>.+))?")


@dataclass(frozen=True)
class Table:
    """Rows that are read each time they are asked for. Only those that are being read are in memory."""

    label: str
    """The name of the table in messages."""
    _open: Callable[[], RowsOrErrors]

    def __iter__(self) -> Iterator[tuple[str, Row]]:
        """Yields (where, row) for each row in order; `where` is such as "halueval.jsonl, row 17".

        Raises:
            InputError: the table or a row cannot be read.
        """
        for where, row in self._open():
            if isinstance(row, InputError):
                raise row
            yield where, row

    def readings(self) -> RowsOrErrors:
        """The same, with an error in the place of each row that cannot be read by itself.

        Raises:
            InputError: the table cannot be read any further.
        """
        return self._open()


def open_table(source: str | Path) -> Table:
    """Finds a table. Nothing of it is read yet.

    Args:
        source: a ``.jsonl``, ``.json``, ``.csv``, ``.tsv`` or ``.parquet`` file, or a Hub dataset: ``org/name``,
            ``org/name:split`` or ``org/name:config/split``, any of them with ``@revision``.

    Raises:
        InputError: it is neither, or the dataset cannot be loaded.
    """
    text = str(source)
    path = Path(source)
    if not is_utf8(text):
        raise InputError(f"{text}: its name is not UTF-8 text. Rename the file.")
    if is_file_name(text):
        return Table(path.name, partial(_read_file, path))
    if path.is_file():
        raise InputError(f"{path.name}: its format is unknown. Give one of {', '.join(_READERS)}.")
    hub = _HUB_SOURCE.fullmatch(text)
    if hub is None or path.exists():
        kinds = ", ".join(_READERS)
        raise InputError(
            f"{text}: it is neither a file nor a Hub dataset. Give a file ({kinds}) or a dataset (org/name)."
        )
    return Table(text, _open_hub(**hub.groupdict()))


def check_source(source: str) -> None:
    """Refuses a file that is missing, and what is neither a file nor the name of a dataset, without reading anything.

    Args:
        source: see `open_table`.

    Raises:
        InputError: see `open_table`; or the file is missing.
    """
    if is_file_name(source) and not Path(source).exists():
        raise missing(Path(source))
    open_table(source)


def is_file_name(source: str) -> bool:
    """Whether a source is a file, because its name ends as those of tables do."""
    return Path(source).suffix.lower() in _READERS


def hub_dataset(source: str) -> str | None:
    """The id of the Hub dataset that a source names, without split and revision; None if the source is a file."""
    hub = None if is_file_name(source) else _HUB_SOURCE.fullmatch(source)
    return None if hub is None else hub["path"]


def read_table(source: str | Path) -> tuple[str, list[tuple[str, Row]]]:
    """All rows of a table.

    Args:
        source: see `open_table`.

    Returns:
        The name of the table in messages, and (where, row) for each row: see `Table`.

    Raises:
        InputError: see `open_table` and `Table`.
    """
    table = open_table(source)
    return table.label, list(table)


def _read_file(path: Path) -> RowsOrErrors:
    number = 0
    try:
        for row in _READERS[path.suffix.lower()](path, path.name):
            yield row
            number += 1
    except FileNotFoundError:
        raise missing(path) from None
    except OSError as error:
        raise InputError(
            f"{path}: it cannot be read ({error.strerror or error}). Check the file and its permissions."
        ) from error
    except UnicodeDecodeError as error:
        where = f"{path.name}, after row {number}" if number else path.name
        raise InputError(f"{where}: it is not UTF-8 text ({error.reason}). Save it as UTF-8.") from error


# Every reader opens text as "utf-8-sig", which skips a byte order mark. What is not UTF-8 is decoded to what no text
# has, so that it is found row by row.


def read_json_lines(path: Path, label: str) -> Iterator[tuple[str, Row]]:
    """The objects of a JSONL file, each with where it is.

    Args:
        path: the file.
        label: its name in messages.

    Raises:
        InputError: a line is not a JSON object.
    """
    return iter(Table(label, partial(_read_json_lines, path, label)))


def _read_json_lines(path: Path, label: str) -> RowsOrErrors:
    number = 0
    with path.open(encoding="utf-8-sig", errors="surrogateescape") as lines:
        for line_number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            number += 1
            where = f"{label}, row {number}" + (f" (line {line_number})" if line_number != number else "")
            try:
                row = _object(_parsed(line, where), where)
            except InputError as error:
                yield where, error
            else:
                yield where, row


def _parsed(text: str, where: str) -> Any:
    if not is_utf8(text):
        raise InputError(f"{where}: it is not UTF-8 text. Save it as UTF-8, or remove it.")
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        where = f"{where}, line {error.lineno}" if "\n" in text.strip() else where
        raise InputError(f"{where}: it is not valid JSON ({error.msg}, column {error.colno}). Repair it.") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, or lists in lists without end
        raise InputError(f"{where}: it is JSON that cannot be read ({first_line(error)}). Change it.") from error


def _read_json(path: Path, label: str) -> RowsOrErrors:
    if _is_json_lines(path):
        yield from _read_json_lines(path, label)
        return
    rows = _parsed(path.read_text(encoding="utf-8-sig"), label)
    if isinstance(rows, dict):
        rows = rows.get("data")
    if not isinstance(rows, list):
        raise InputError(f'{label}: it holds no list. Give a list of objects, or an object {{"data": [...]}} with one.')
    yield from _numbered(rows, label)


def _is_json_lines(path: Path) -> bool:
    """Whether a .json file holds JSON lines, as HaluEval's own files do."""
    with path.open(encoding="utf-8-sig", errors="surrogateescape") as lines:
        written = (line for line in lines if line.strip())
        first, second = next(written, ""), next(written, None)
    try:
        return second is not None and isinstance(json.loads(first), dict)
    except (ValueError, RecursionError):
        return False


def _read_csv(path: Path, label: str) -> RowsOrErrors:
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as lines:
        reader = csv.reader(lines, delimiter="\t" if path.suffix.lower() == ".tsv" else ",", strict=True)
        rows = _csv_rows(reader, label)
        header = next(rows, [])
        if isinstance(header, InputError):
            raise header
        _check_header(header, label)
        for number, cells in enumerate(rows, start=1):
            where = f"{label}, row {number}"
            if isinstance(cells, InputError):
                yield where, cells
            elif len(cells) != len(header):
                problem = "it does not have as many fields as the header. Look for a missing quote."
                yield where, InputError(f"{where}: {problem}")
            elif not all(map(is_utf8, cells)):
                yield where, InputError(f"{where}: it is not UTF-8 text. Save it as UTF-8, or remove it.")
            else:
                yield where, dict(zip(header, cells, strict=True))


def _csv_rows(reader: Any, label: str) -> Iterator[list[str] | InputError]:
    """The rows of a CSV reader, without empty ones, with an error in the place of those that it refuses.

    Cells may have any length: the limit of the module, which holds for the whole process, is lifted during each read.
    """
    while True:
        limit = csv.field_size_limit(_LONGEST_CELL)
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield InputError(f"{label}, line {reader.line_num}: it cannot be parsed ({error}). Repair it.")
            continue
        finally:
            csv.field_size_limit(limit)
        if cells:
            yield cells


def _check_header(columns: Sequence[str], label: str) -> None:
    if not all(map(is_utf8, columns)):
        raise InputError(f"{label}: the names of its columns are not UTF-8 text. Save it as UTF-8.")
    twice = next((name for name, count in Counter(columns).items() if count > 1), None)
    if twice is not None:
        raise InputError(f"{label}: it has two columns {twice!r}. Remove or rename one.")


def _read_parquet(path: Path, label: str) -> RowsOrErrors:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise InputError(f"{label}: reading Parquet needs pyarrow. Run pip install 'sea-export[datasets]'.") from None
    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            _check_header(file.schema_arrow.names, label)
            for batch in file.iter_batches(_BATCH_ROWS):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{label}, row {number}", row
    except (pyarrow.ArrowException, ValueError, OverflowError, NotImplementedError) as error:
        if isinstance(error, UnicodeDecodeError):
            raise
        where = f"{label}, after row {number}" if number else label
        raise InputError(
            f"{where}: it is not a readable Parquet file ({first_line(error)}). Write it again."
        ) from error


def _meant(path: str) -> str:
    """Asks whether a file beside a missing one was meant; empty if none is near."""
    return meant(path, neighbours(Path(path)))


def _open_hub(path: str, config: str | None, split: str | None, revision: str | None) -> Callable[[], RowsOrErrors]:
    try:
        import datasets
    except ImportError:
        raise InputError(
            f"{path}: there is no such file{_meant(path)}, and reading a dataset from the Hub needs the datasets "
            "library. Check the path, or run pip install 'sea-export[datasets]'."
        ) from None
    try:
        dataset = datasets.load_dataset(path, config, split=split, revision=revision, trust_remote_code=False)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise InputError(
            f"{path}: there is no such file{_meant(path)}, and the Hub dataset of this name cannot be loaded "
            f"({first_line(error)}). Check the name."
        ) from error
    if split is None:
        split = "train" if "train" in dataset else next(iter(dataset))
        if split != "train" and len(dataset) > 1:
            raise InputError(f"{path}: it has several splits. Choose one as {path}:SPLIT, of {', '.join(dataset)}.")
        dataset = dataset[split]
    return lambda: _numbered(dataset, f"{path}, split {split}")


def _numbered(rows: Iterable[object], label: str) -> RowsOrErrors:
    for number, row in enumerate(rows, start=1):
        where = f"{label}, row {number}"
        try:
            found = _object(row, where)
        except InputError as error:
            yield where, error
        else:
            yield where, found


def _object(row: object, where: str) -> Row:
    if not isinstance(row, dict):
        raise InputError(f"{where}: it is of type {type(row).__name__}. Give an object with named columns.")
    for column, value in row.items():
        if not all(map(is_utf8, _texts([column, value]))):
            raise InputError(f"{where}: {column!r} has half of a surrogate pair, which is not text. Change it.")
    return row


def _texts(values: list[object]) -> Iterator[str]:
    """All texts in some values, those in lists and objects included."""
    while values:
        value = values.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, dict):
            values += [*value.keys(), *value.values()]
        elif isinstance(value, list):
            values += value


_READERS: dict[str, Callable[[Path, str], RowsOrErrors]] = {
    ".jsonl": _read_json_lines,
    ".json": _read_json,
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".parquet": _read_parquet,
}
