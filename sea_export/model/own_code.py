"""Code that comes with a model: which files name it, and whether the model can be loaded without it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sea_export.errors import InputError
from sea_export.files.reading import read_json_object

__all__ = ["check_config", "needs_own_code", "other_code"]

_FILES_THAT_NAME_CODE = (
    "tokenizer_config.json",
    "processor_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
)
_KERNELS = ("attn_implementation", "experts_implementation")
"""Entries of a config that choose how a model computes: by a name of transformers' own, or a repository of the Hub."""


def needs_own_code(config: Mapping[str, Any]) -> bool:
    """Whether only code that comes with a model can load it.

    Args:
        config: the contents of its config.json.
    """
    from transformers import CONFIG_MAPPING

    return "auto_map" in config and config.get("model_type") not in CONFIG_MAPPING


def check_config(config: Mapping[str, Any], name: str) -> None:
    """Refuses a config that only trusted code can load, or that names code where transformers would ask for trust.

    Args:
        config: the contents of config.json.
        name: the name of the model, for messages.

    Raises:
        InputError: it is such a config.
    """
    if needs_own_code(config):
        raise InputError(
            f"{name}: only code that comes with it can load it. Read that code, and allow it with --trust-remote-code."
        )
    _check_parts(config, name)


def _check_parts(config: Mapping[str, Any], name: str) -> None:
    for key, value in config.items():
        if key.strip("_").removesuffix("_internal") in _KERNELS and "/" in json.dumps(value):
            raise InputError(
                f"{name}: its config has {key} from a repository of the Hub, whose code would run. Remove the entry, "
                "or allow the code with --trust-remote-code."
            )
        for part in value if isinstance(value, list) else [value]:
            if isinstance(part, dict):
                if "auto_map" in part:
                    raise InputError(
                        f"{name}: {key} in its config names code that comes with it. Read that code, and allow it with "
                        "--trust-remote-code."
                    )
                _check_parts(part, name)


def other_code(directory: Path) -> str | None:
    """The file that makes transformers run other code than the model's own when it loads a trusted model.

    Args:
        directory: the model.

    Returns:
        The path of the file relative to the directory; None if there is none.

    Raises:
        InputError: a file that may name code cannot be read.
    """
    for file in _FILES_THAT_NAME_CODE:
        if (directory / file).exists() and "auto_map" in read_json_object(directory / file):
            return file
    generation = Path("custom_generate", "generate.py")
    return generation.as_posix() if (directory / generation).exists() else None
