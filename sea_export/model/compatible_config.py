"""Entries of config.json that programs look for where transformers 4 wrote them.

transformers 5 writes the base of rotary position embeddings into `rope_parameters` only. transformers 4, and programs
with readers of their own, look for `rope_theta` and `rope_scaling` at the top level. Where these are missing,
transformers 4, CTranslate2 beside it, and mlx-lm compute with a value of their own, 10000, and say nothing. mistral.rs
refuses to load a Llama model then.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sea_export.errors import InputError

__all__ = ["added_entries", "missing_entries"]

_TEXT = "text_config"
_USUAL_THETA = 10000.0


def missing_entries(config: Mapping[str, Any]) -> dict[str, Any]:
    """The entries that older readers miss, with their values: `text_config.x` is the entry x of text_config.

    Rotary position embeddings that differ between layers have no older form that all readers share: nothing is given
    for them. Neither is what every reader takes where it finds nothing.

    Args:
        config: the contents of config.json.
    """
    section = config.get(_TEXT) if isinstance(config.get(_TEXT), dict) else config
    assert section is not None
    rope = section.get("rope_parameters")
    if not isinstance(rope, dict) or not isinstance(rope.get("rope_theta"), (int, float)):
        return {}
    older: dict[str, Any] = {"rope_theta": rope["rope_theta"]} if rope["rope_theta"] != _USUAL_THETA else {}
    if "partial_rotary_factor" in rope:
        older["partial_rotary_factor"] = rope["partial_rotary_factor"]
    if rope.get("rope_type", "default") != "default":
        older["rope_scaling"] = {name: value for name, value in rope.items() if name not in ("rope_theta", *older)}
    prefix = f"{_TEXT}." if section is not config else ""
    return {f"{prefix}{name}": value for name, value in older.items() if section.get(name) is None}


def added_entries(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The same, where they are asked for.

    Args:
        config: the contents of config.json.
        name: the name of the base, for messages.

    Raises:
        InputError: nothing is missing.
    """
    missing = missing_entries(config)
    if not missing:
        raise InputError(
            f"--compatible-config: the config.json of {name} has all entries that older readers look for, or no older "
            "form of them. Leave the option out."
        )
    return missing
