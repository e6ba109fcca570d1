"""The files of a PEFT adapter of unknown origin, read and checked before PEFT sees them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sea_export.errors import InputError
from sea_export.files.reading import check_contained, read_json_object
from sea_export.model.safetensors_header import read_header

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "ADAPTER_CONFIG",
    "ADAPTER_WEIGHTS",
    "base_of_adapter",
    "check_adapter_files",
    "read_adapter_config",
    "read_adapter_weights",
]

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"

_NAMES = ("target_modules", "exclude_modules", "layers_pattern", "rank_pattern", "alpha_pattern")
"""Entries whose names of modules PEFT takes for regular expressions."""
_REPETITIONS = set("*+?{(")


def check_adapter_files(directory: Path) -> None:
    """Raises InputError for an adapter that no library should load. See `read_adapter_config`; tensors are not read.

    Args:
        directory: the adapter.
    """
    read_adapter_config(directory)
    _check_weights(directory / ADAPTER_WEIGHTS)


def _check_weights(file: Path) -> None:
    check_contained(file, file.parent)
    read_header(file)


def read_adapter_config(directory: Path) -> dict[str, Any]:
    """The contents of the config of a LoRA adapter.

    Args:
        directory: the adapter.

    Raises:
        InputError: it is missing, of another kind of adapter, makes PEFT import a module, or names modules by an
            expression that may take endless time.
    """
    file = directory / ADAPTER_CONFIG
    check_contained(file, directory)
    config = read_json_object(file)
    if config.get("peft_type") != "LORA":
        raise InputError(f"{file}: it is not the config of a LoRA adapter. Merge other adapters into their base first.")
    if config.get("megatron_config"):
        raise InputError(f"{file}: its megatron_config makes PEFT import a module by its name. Remove the entry.")
    for key in _NAMES:
        for name in _texts(config.get(key)):
            if _REPETITIONS & set(name):
                raise InputError(
                    f"{file}: its {key} names modules by the expression {name!r}, whose search may take endless time. "
                    "List the names of the modules."
                )
    return config


def read_adapter_weights(directory: Path) -> dict[str, Tensor]:
    """The tensors of an adapter by name.

    Args:
        directory: the adapter.

    Raises:
        InputError: the file is missing, leads out of the directory, or is not a safetensors file.
    """
    file = directory / ADAPTER_WEIGHTS
    _check_weights(file)
    from safetensors.torch import load_file  # torch takes seconds to import

    return load_file(file)


def base_of_adapter(directory: Path) -> str:
    """The base that an adapter names: a Hub id or a path.

    Args:
        directory: the adapter.

    Raises:
        InputError: it has no config, or its config names no base.
    """
    check_contained(directory / ADAPTER_CONFIG, directory)
    name = read_json_object(directory / ADAPTER_CONFIG).get("base_model_name_or_path")
    if not isinstance(name, str) or not name:
        raise InputError(f"{directory.name}: its {ADAPTER_CONFIG} names no base. Give the base with --base.")
    return name


def _texts(value: object) -> Iterator[str]:
    """All texts in a JSON value, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, entry in value.items():
            yield key
            yield from _texts(entry)
    elif isinstance(value, list):
        for entry in value:
            yield from _texts(entry)
