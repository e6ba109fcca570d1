"""Contrastive demonstrations: read a file or a dataset, recognise its columns, check every row."""

from __future__ import annotations

import csv
import hashlib
import json
import logging
import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.resources import as_file, files
from pathlib import Path

from sea_export.conventions import Fields, Row, recognise
from sea_export.errors import InputError
from sea_export.tokenization import TEMPLATES, TokenizedDemonstration, tokenize

__all__ = [
    "BUILTIN",
    "TEMPLATES",
    "Demonstration",
    "Fields",
    "TokenizedDemonstration",
    "demonstrations_digest",
    "load_demonstrations",
    "tokenize",
]

BUILTIN = ("truthfulness", "fairness")

_HUB_SOURCE = re.compile(r"(?P<path>[\w.-]+/[\w.-]+)(:(?P<split>[^@]+))?(@(?P<revision>.+))?")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Demonstration:
    """A prompt with a completion to move towards and one to move away from.

    Attributes:
        prompt: The prompt, before any template.
        positive: The completion whose activations the edit keeps.
        negative: The completion whose activations the edit drops.
        source: Where it was read, such as "halueval.jsonl, row 17", for messages.
    """

    prompt: str
    positive: str
    negative: str
    source: str = field(default="", compare=False)


def load_demonstrations(
    source: str | Path,
    *,
    prompt_field: str | None = None,
    positive_field: str | None = None,
    negative_field: str | None = None,
    limit: int | None = None,
    seed: int = 0,
) -> tuple[Demonstration, ...]:
    """Read contrastive demonstrations and check every one of them.

    Args:
        source: A ``.jsonl``, ``.json``, ``.csv``, ``.tsv`` or ``.parquet`` file; ``builtin:truthfulness`` or
            ``builtin:fairness``; or a Hub dataset, ``org/name``, ``org/name:split`` or ``org/name:split@revision``.
        prompt_field: Column of the prompts, where it is none of the known ones.
        positive_field: Column of the positive completions, likewise.
        negative_field: Column of the negative completions, likewise.
        limit: Keep a random sample of this many demonstrations.
        seed: Seed of that sample.

    Returns:
        The demonstrations, in the order of the source.

    Raises:
        InputError: The source is missing, cannot be read, or has unknown columns; a row has an empty text, or equal
            completions; fewer than two demonstrations remain.
    """
    if limit is not None and limit < 2:
        raise InputError(f"A limit of {limit} is too low: at least 2 demonstrations are needed.")
    label, rows = _read(source)
    if not rows:
        raise InputError(f"{label}: there are no rows in it.")
    convention = recognise(rows[0][1].keys(), Fields(prompt_field, positive_field, negative_field), label)
    demonstrations, remarks = [], Counter[str]()
    for where, row in rows:
        reading = convention.read(row, where)
        if reading.remark is not None:
            remarks[reading.remark] += 1
        if reading.contrast is not None:
            demonstrations.append(_checked(Demonstration(*reading.contrast, source=where)))
    for remark, count in remarks.items():
        logger.warning("%s: %d of %d rows %s.", label, count, len(rows), remark)
    if limit is not None and limit < len(demonstrations):
        chosen = random.Random(seed).sample(range(len(demonstrations)), limit)
        demonstrations = [demonstrations[index] for index in sorted(chosen)]
    if len(demonstrations) < 2:
        raise InputError(f"{label}: {len(demonstrations)} demonstration(s) to fit on; at least 2 are needed.")
    duplicates = len(demonstrations) - len(set(demonstrations))
    if duplicates:
        logger.warning("%s: %d demonstrations repeat another one; each counts.", label, duplicates)
    return tuple(demonstrations)


def demonstrations_digest(demonstrations: Sequence[Demonstration]) -> str:
    """Digest of the demonstrations' texts, in their order, wherever they came from.

    Args:
        demonstrations: The demonstrations.

    Returns:
        SHA-256, in hexadecimal, of the canonical JSON of the list of [prompt, positive, negative].
    """
    texts = [[one.prompt, one.positive, one.negative] for one in demonstrations]
    canonical = json.dumps(texts, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(canonical.encode("utf-8")).hexdigest()


def _checked(demonstration: Demonstration) -> Demonstration:
    if demonstration.positive.strip() == demonstration.negative.strip():
        raise InputError(
            f"{demonstration.source}: the positive and the negative completion are equal, so there is no contrast "
            "to learn. Change one or remove the row."
        )
    return demonstration


# Sources


def _read(source: str | Path) -> tuple[str, list[tuple[str, Row]]]:
    """Name a source for messages and read its rows, each with where it stands."""
    text = str(source)
    path = Path(source)
    if text.startswith("builtin:"):
        name = text.removeprefix("builtin:")
        if name not in BUILTIN:
            known = " and ".join(f"builtin:{one}" for one in BUILTIN)
            raise InputError(f"There are no built-in demonstrations {name!r}; there are {known}.")
        with as_file(files("sea_export") / "data" / f"{name}.jsonl") as builtin:
            return text, list(_read_json_lines(builtin, text))
    if path.is_file() or path.suffix.lower() in _READERS:
        return path.name, _read_file(path)
    hub = _HUB_SOURCE.fullmatch(text)
    if hub is None or path.exists():
        kinds = ", ".join(_READERS)
        raise InputError(f"{text}: this is neither a file that can be read ({kinds}) nor a Hub dataset (org/name).")
    return text, _read_hub(**hub.groupdict())


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


def _read_json_lines(path: Path, label: str) -> Iterator[tuple[str, Row]]:
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
            yield from _read_json_lines(path, label)
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


def _read_hub(path: str, split: str | None, revision: str | None) -> list[tuple[str, Row]]:
    try:
        import datasets
    except ImportError:
        raise InputError(
            f"{path}: there is no such file, and reading a dataset from the Hub needs the datasets library: "
            "pip install sea-export[datasets]"
        ) from None
    try:
        dataset = datasets.load_dataset(path, split=split, revision=revision)
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
    ".jsonl": _read_json_lines,
    ".json": _read_json,
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".parquet": _read_parquet,
}
