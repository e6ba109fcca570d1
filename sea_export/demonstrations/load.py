"""Contrastive demonstrations: a file or a dataset is read, its columns are recognised, and every row is checked."""

from __future__ import annotations

import logging
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any, TypeAlias

from sea_export.demonstrations.bad_rows import BadRows
from sea_export.demonstrations.columns import ColumnFormat, Fields, recognise
from sea_export.demonstrations.demonstration import Demonstration, DemonstrationOrigin, LoadedDemonstrations
from sea_export.demonstrations.demonstration_options import DemonstrationOptions
from sea_export.demonstrations.tables import Row, Table, open_table, read_json_lines
from sea_export.errors import InputError

__all__ = ["BUILTIN", "DemonstrationData", "demonstrations_of", "load_demonstrations", "read_demonstrations"]

DemonstrationData: TypeAlias = str | Path | Iterable[Demonstration] | Iterable[Mapping[str, Any]]
"""See `demonstrations_of`. A data frame is none of these types, and is taken too."""

BUILTIN = ("truthfulness", "fairness")

# The key under which all rows are counted. The other keys are remarks on some of them.
_ROWS = "are there"

logger = logging.getLogger(__name__)


def load_demonstrations(
    source: str | Path,
    *,
    prompt_field: str | None = None,
    positive_field: str | None = None,
    negative_field: str | None = None,
    limit: int | None = None,
    seed: int = 0,
    skip_bad_rows: bool = False,
) -> LoadedDemonstrations:
    """Reads contrastive demonstrations and checks every one of them.

    Args:
        source: a ``.jsonl``, ``.json``, ``.csv``, ``.tsv`` or ``.parquet`` file; ``builtin:truthfulness`` or
            ``builtin:fairness``; or a Hub dataset, ``org/name``, ``org/name:split`` or
            ``org/name:config/split``, with ``@revision`` for a revision.
        prompt_field: the column of the prompts, if it does not have a known name.
        positive_field: the column of the positive completions, if it does not have a known name.
        negative_field: the column of the negative completions, if it does not have a known name.
        limit: the size of a random sample to keep; None for all. The source is then read twice. Of JSON lines, CSV and
            Parquet no more rows than the sample are in memory.
        seed: the seed of the sample.
        skip_bad_rows: whether rows that cannot be used are left out, with a warning that counts them and names three.

    Returns:
        The demonstrations, in the order of the source, and where they were read.

    Raises:
        InputError: the source is missing, cannot be read, or has unknown columns; a row has an empty text, or equal
            completions, and is not to be left out; or fewer than two demonstrations remain.
    """
    if limit is not None and limit < 2:
        raise InputError(f"--limit: {limit} is too low. Give at least 2.")
    with _opened(source) as table:
        label, remarks, bad = table.label, Counter[str](), BadRows(skip=skip_bad_rows)
        fields = Fields(prompt_field, positive_field, negative_field)
        if limit is None:
            demonstrations = list(_read(table, fields, bad, remarks))
        else:  # counted first and read again, so that no more than the sample is ever in memory
            count = sum(1 for _ in _read(table, fields, bad, remarks))
            chosen = set(random.Random(seed).sample(range(count), min(limit, count)))
            read = enumerate(_read(table, fields, BadRows(skip=True), Counter()))
            demonstrations = [demonstration for index, demonstration in read if index in chosen]
    bad.tell(label, remarks[_ROWS])
    for remark, number in remarks.items():
        if remark != _ROWS:
            logger.warning("%s: %d of %d rows %s.", label, number, remarks[_ROWS], remark)
    if len(demonstrations) < 2:
        raise InputError(f"{label}: {len(demonstrations)} demonstrations are too few for a fit. Give at least 2.")
    duplicates = len(demonstrations) - len(set(demonstrations))
    if duplicates:
        logger.warning("%s: %d demonstrations repeat another one, and each of them counts.", label, duplicates)
    origin = DemonstrationOrigin(
        label, prompt_field, positive_field, negative_field, limit, seed, skip_bad_rows=skip_bad_rows
    )
    return LoadedDemonstrations(demonstrations, origin)


def demonstrations_of(data: DemonstrationData) -> Sequence[Demonstration]:
    """Demonstrations from whatever holds them in Python. Rows are checked as those of a file are.

    Args:
        data: `Demonstration` objects; rows with known columns (`prompt`, `positive` and `negative`, or those of
            preference data), as mappings, a `datasets.Dataset`, or a data frame of pandas or Polars; or a source that
            `load_demonstrations` reads, such as `builtin:truthfulness`.

    Raises:
        InputError: an item is no row, or see `load_demonstrations`.
    """
    if isinstance(data, (str, Path)):
        return load_demonstrations(data)
    rows = _rows_in_memory(data)
    if all(isinstance(row, Demonstration) for row in rows):
        return data if isinstance(data, LoadedDemonstrations) else tuple(rows)
    for position, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise InputError(
                f"demonstrations: item {position} is of type {type(row).__name__}. Give rows with prompt, positive and "
                "negative, or Demonstration objects."
            )
    table = Table("demonstrations", lambda: ((f"demonstrations, row {at}", row) for at, row in enumerate(rows, 1)))
    return tuple(_read(table, Fields(), BadRows(skip=False), Counter()))


def read_demonstrations(options: DemonstrationOptions, seed: int) -> LoadedDemonstrations:
    """`load_demonstrations` with its options as one object.

    Args:
        options: where the demonstrations are, and which of them are used.
        seed: seed of the sample that `options.limit` draws.

    Raises:
        InputError: see `load_demonstrations`.
    """
    return load_demonstrations(
        options.demonstrations,
        prompt_field=options.prompt_field,
        positive_field=options.positive_field,
        negative_field=options.negative_field,
        limit=options.limit,
        seed=seed,
        skip_bad_rows=options.skip_bad_rows,
    )


def _rows_in_memory(data: Any) -> list[Any]:
    if hasattr(data, "to_dicts"):  # Polars
        return list(data.to_dicts())
    if hasattr(data, "iterrows"):  # pandas, whose items are the names of its columns
        return list(data.to_dict("records"))
    return list(data)


def _kind(row: Row) -> str:
    found = row.get("kind") or row.get("category")
    return found if isinstance(found, str) else ""


def _checked(demonstration: Demonstration) -> Demonstration:
    if demonstration.positive.strip() == demonstration.negative.strip():
        raise InputError(
            f"{demonstration.source}: the positive and the negative completion are equal. Change one or remove the row."
        )
    return demonstration


def _read(table: Table, fields: Fields, bad: BadRows, remarks: Counter[str]) -> Iterator[Demonstration]:
    """The checked demonstrations of a table. `remarks` counts all rows, and those rows to which a remark applies."""
    column_format: ColumnFormat | None = None
    for where, row in table.readings():
        remarks[_ROWS] += 1
        if isinstance(row, InputError):
            bad.add(row)
            continue
        column_format = column_format or recognise(row.keys(), fields, table.label)
        try:
            reading = column_format.read(row, where)
            found = reading.contrast and _checked(Demonstration(*reading.contrast, source=where, kind=_kind(row)))
        except InputError as error:
            bad.add(error)
            continue
        if reading.remark is not None:
            remarks[reading.remark] += 1
        if found is not None:
            yield found
    if column_format is None:
        bad.fail(table.label)


@contextmanager
def _opened(source: str | Path) -> Iterator[Table]:
    text = str(source)
    if not text.startswith("builtin:"):
        yield open_table(source)
        return
    name = text.removeprefix("builtin:")
    if name not in BUILTIN:
        known = " or ".join(f"builtin:{one}" for one in BUILTIN)
        raise InputError(f"{text}: there are no such built-in demonstrations. Choose {known}.")
    with as_file(files("sea_export") / "data" / f"{name}.jsonl") as builtin:
        yield Table(text, partial(read_json_lines, builtin, text))
