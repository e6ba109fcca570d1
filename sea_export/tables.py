"""Rows of a table, wherever it is kept: a file of any common format, or a dataset of the Hub."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from sea_export.errors import InputError

__all__ = ["Row", "hub_dataset", "is_file_name", "read_json_lines", "read_table"]

Row = Mapping[str, Any]

_HUB_SOURCE = re.compile(r"(?P<path>[\w.-]+/[\w.-]+)(:((?P<config>[^/@]+)/)?(?P<split>[^/@]+))?(@(?P<revision>.+))?")


def read_table(source: str | Path) -> tuple[str, list[tuple[str, Row]]]:
    """Names a source for messages and reads its rows, each with where it stands.

    Args:
        source: a ``.jsonl``, ``.json``, ``.csv``, ``.tsv`` or ``.parquet`` file, or a Hub dataset: ``org/name``,
            ``org/name:split`` or ``org/name:config/split``, any of them with ``@revision``.

    Returns:
        The source's name, and (where, row) for each row in order; `where` is such as "halueval.jsonl, row 17".

    Raises:
        InputError: the source is missing or cannot be read.
    """
    text = str(source)
    path = Path(source)
    if path.is_file() or is_file_name(text):
        return path.name, _read_file(path)
    hub = _HUB_SOURCE.fullmatch(text)
    if hub is None or path.exists():
        kinds = ", ".join(_READERS)
        raise InputError(f"{text}: this is neither a file that can be read ({kinds}) nor a Hub dataset (org/name).")
    return text, _read_hub(**hub.groupdict())


def is_file_name(source: str) -> bool:
    """Whether a source is a file because of its name, which ends as those of tables do."""
    return Path(source).suffix.lower() in _READERS


def hub_dataset(source: str) -> str | None:
    """The id of the Hub dataset that a source names, without split and revision; None if it names none."""
    hub = None if is_file_name(source) else _HUB_SOURCE.fullmatch(source)
    return None if hub is None else hub["path"]


def _read_file(path: Path) -> list[tuple[str, Row]]:
    try:
        reader = _READERS[path.suffix.lower()]
    except KeyError:
        raise InputError(f"{path.name}: its format is unknown; the known ones are {', '.join(_READERS)}.") from None
    try:
        return list(reader(path, path.name))
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such file.") from None
    except OSError as error:
        raise InputError(f"{path}: it cannot be read ({error.strerror or error}).") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path.name}: it is not UTF-8 text ({error.reason} at byte {error.start}).") from error


# Every reader opens text as "utf-8-sig", which skips a byte order mark.


def read_json_lines(path: Path, label: str) -> Iterator[tuple[str, Row]]:
    """The objects of a JSONL file, which messages call `label`, each with where it stands."""
    number = 0
    with path.open(encoding="utf-8-sig") as lines:
        for line_number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            number += 1
            where = f"{label}, row {number}" + (f" (line {line_number})" if line_number != number else "")
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise InputError(f"{where}: it is not valid JSON ({error.msg}, column {error.colno}).") from error
            yield where, _object(row, where)


def _read_json(path: Path, label: str) -> Iterator[tuple[str, Row]]:
    try:
        rows = json.loads(path.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        # JSON lines under the name .json are common (HaluEval's own files are): one object, then more data.
        if error.msg == "Extra data":
            yield from read_json_lines(path, label)
            return
        raise InputError(f"{label}, line {error.lineno}: it is not valid JSON ({error.msg}).") from error
    if isinstance(rows, dict):
        rows = rows.get("data")
    if not isinstance(rows, list):
        raise InputError(f'{label}: it must hold a list of objects, or an object {{"data": [...]}} around one.')
    yield from _numbered(rows, label)


def _read_csv(path: Path, label: str) -> Iterator[tuple[str, Row]]:
    with path.open(encoding="utf-8-sig", newline="") as lines:
        table = csv.DictReader(lines, delimiter="\t" if path.suffix.lower() == ".tsv" else ",", strict=True)
        try:
            for where, row in _numbered(table, label):
                # DictReader files what is too much under the key None and fills up what is missing with None.
                if None in row or None in row.values():
                    raise InputError(f"{where}: it does not have as many fields as the header. Is a quote missing?")
                yield where, row
        except csv.Error as error:
            raise InputError(f"{label}, line {table.reader.line_num}: it cannot be parsed ({error}).") from error


def _read_parquet(path: Path, label: str) -> Iterator[tuple[str, Row]]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise InputError(f"{label}: reading Parquet needs pyarrow: pip install sea-export[datasets]") from None
    try:
        rows = pyarrow.parquet.read_table(path).to_pylist()
    except pyarrow.ArrowException as error:
        raise InputError(f"{label}: it is not a readable Parquet file ({error}).") from error
    yield from _numbered(rows, label)


def _read_hub(path: str, config: str | None, split: str | None, revision: str | None) -> list[tuple[str, Row]]:
    try:
        import datasets
    except ImportError:
        raise InputError(
            f"{path}: there is no such file, and reading a dataset from the Hub needs the datasets library: "
            "pip install sea-export[datasets]"
        ) from None
    try:
        dataset = datasets.load_dataset(path, config, split=split, revision=revision)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise InputError(
            f"{path}: there is no such file, and the Hub dataset of this name cannot be loaded ({error})."
        ) from error
    if split is None:
        split = "train" if "train" in dataset else next(iter(dataset))
        if split != "train" and len(dataset) > 1:
            raise InputError(f"{path}: choose one of its splits, {path}:SPLIT: {', '.join(dataset)}.")
        dataset = dataset[split]
    return list(_numbered(dataset, f"{path}, split {split}"))


def _numbered(rows: Iterable[object], label: str) -> Iterator[tuple[str, Row]]:
    for number, row in enumerate(rows, start=1):
        where = f"{label}, row {number}"
        yield where, _object(row, where)


def _object(row: object, where: str) -> Row:
    if not isinstance(row, dict):
        raise InputError(f"{where}: a row must be an object with named columns, not {type(row).__name__}.")
    return row


_READERS: dict[str, Callable[[Path, str], Iterator[tuple[str, Row]]]] = {
    ".jsonl": read_json_lines,
    ".json": _read_json,
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".parquet": _read_parquet,
}
