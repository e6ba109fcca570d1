"""Free prompts, from a file or built in."""

from __future__ import annotations

from importlib.resources import as_file, files
from pathlib import Path

from sea_export.demonstrations.tables import read_json_lines, read_table
from sea_export.errors import InputError
from sea_export.files.nearest_name import missing
from sea_export.text import is_text

__all__ = ["load_prompts"]


def load_prompts(source: str | None) -> tuple[str, ...]:
    """Reads prompts.

    Args:
        source: a `.txt` file with one prompt per line; a table with a column `prompt` or `question` (see
            `sea_export.demonstrations.tables.read_table`); or None for the built-in ones.

    Raises:
        InputError: the source cannot be read, or has no prompt.
    """
    if source is None:
        with as_file(files("sea_export") / "data" / "prompts.jsonl") as builtin:
            return tuple(row["prompt"] for _, row in read_json_lines(builtin, "built-in prompts"))
    if Path(source).suffix.lower() == ".txt":
        try:
            lines = Path(source).read_text(encoding="utf-8-sig").split("\n")
        except FileNotFoundError:
            raise missing(Path(source)) from None
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{source}: it cannot be read as UTF-8 text ({error}). Give another file.") from error
        prompts = [line.strip() for line in lines if line.strip()]
    else:
        _, rows = read_table(source)
        prompts = []
        for where, row in rows:
            prompt = row.get("prompt", row.get("question"))
            if not isinstance(prompt, str) or not is_text(prompt):
                raise InputError(
                    f"{where}: it has no text in a column 'prompt' or 'question'. Add it, or remove the row."
                )
            prompts.append(prompt)
    if not prompts:
        raise InputError(f"{source}: it has no prompts. Give at least one.")
    return tuple(prompts)
