"""The JSON Schemas of what commands give as JSON. They are files of the package."""

from __future__ import annotations

import functools
import json
from importlib.resources import files
from typing import Any

__all__ = ["read_schema", "schema_names", "schema_version"]

_FOLDER = files("sea_export") / "data" / "schemas"


def schema_names() -> list[str]:
    """The names of all schemas, sorted."""
    return sorted(file.name.removesuffix(".json") for file in _FOLDER.iterdir())


@functools.cache
def read_schema(name: str) -> dict[str, Any]:
    """A schema (JSON Schema, draft 2020-12).

    Args:
        name: its name, such as `diff`.
    """
    schema: dict[str, Any] = json.loads((_FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    return schema


def schema_version(name: str) -> int:
    """The version of a schema. It rises when an entry goes or changes its meaning, and stays when one is added.

    Args:
        name: its name.
    """
    version: int = read_schema(name)["properties"]["schema_version"]["const"]
    return version
