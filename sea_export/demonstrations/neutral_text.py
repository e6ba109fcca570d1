"""Text that has nothing to do with demonstrations: for measuring damage, and for the curvature of a fit."""

from __future__ import annotations

from importlib.resources import as_file, files
from pathlib import Path

from sea_export.demonstrations.tables import read_json_lines, read_table
from sea_export.errors import InputError
from sea_export.files.nearest_name import missing
from sea_export.text import is_text

__all__ = ["curvature_questions", "curvature_texts", "load_texts", "ordinary_questions"]


def load_texts(source: str | None) -> tuple[str, ...]:
    """Reads passages of text, on which damage is measured.

    Args:
        source: a `.txt` file, with empty lines between its passages; a table with a column `text` (see
            `sea_export.demonstrations.tables.read_table`); or None for the built-in set.

    Raises:
        InputError: the source cannot be read, or has fewer than two passages.
    """
    if source is None:
        return _builtin("neutral")
    if Path(source).suffix.lower() == ".txt":
        label, texts = Path(source).name, _read_passages(Path(source))
    else:
        label, rows = read_table(source)
        for where, row in rows:
            if not is_text(row.get("text")):
                raise InputError(f"{where}: it has no text in a column 'text'. Add it, or remove the row.")
        texts = [row["text"] for _, row in rows]
    if len(texts) < 2:
        raise InputError(f"{label}: it has {len(texts)} passage(s) of text. Give at least 2.")
    return tuple(texts)


def curvature_texts() -> tuple[str, ...]:
    """The built-in passages that a natural gradient is taken against. None of them is among those of `load_texts`."""
    return _builtin("curvature")


def ordinary_questions() -> tuple[str, ...]:
    """The built-in questions and requests on whose answers damage is measured. None is among the demonstrations."""
    return _builtin("questions", "prompt")


def curvature_questions() -> tuple[str, ...]:
    """The built-in questions against whose answers a natural gradient is taken. None is in `ordinary_questions`."""
    return _builtin("curvature_questions", "prompt")


def _builtin(name: str, column: str = "text") -> tuple[str, ...]:
    with as_file(files("sea_export") / "data" / f"{name}.jsonl") as file:
        return tuple(row[column] for _, row in read_json_lines(file, "built-in text"))


def _read_passages(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise missing(path) from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: it cannot be read as UTF-8 text ({error}). Give another file.") from error
    return [passage.strip() for passage in text.split("\n\n") if passage.strip()]
