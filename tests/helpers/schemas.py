"""Results of commands checked against the JSON Schemas of the package."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

from sea_export.files.schemas import read_schema

__all__ = ["closed", "validated"]


def validated(text: str | Path, schema: str) -> dict[str, Any]:
    """A result, after a check that it is in the form of its schema, and has no entry that the schema does not describe.

    Args:
        text: the JSON, or the file that holds it.
        schema: the name of the schema.
    """
    content = text.read_text(encoding="utf-8") if isinstance(text, Path) else text
    result: dict[str, Any] = json.loads(content, parse_constant=_refuse)
    Draft202012Validator(closed(read_schema(schema))).validate(result)
    assert result["schema"] == schema
    return result


def closed(schema: Any) -> Any:
    """The same schema, of which no object may have entries that it does not describe."""
    if isinstance(schema, list):
        return [closed(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    found = {name: closed(one) for name, one in schema.items()}
    if isinstance(found.get("properties"), dict) and found.get("type") == "object":
        found.setdefault("additionalProperties", False)
    return found


def _refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is no number of JSON")
