"""The files of a PEFT adapter of unknown origin, read and checked before PEFT sees them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from sea_export.errors import InputError
from sea_export.files.reading import check_contained, read_json_object
from sea_export.files.typed import type_problem
from sea_export.model.safetensors_header import Header, read_header

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
_MOST_LAYERS = 1000
"""As many layers as a config may make of those of the base."""


class _AdapterConfig(TypedDict, total=False):
    """The entries that PEFT uses as they are, without a check of their types."""

    base_model_name_or_path: str | None
    r: int
    lora_alpha: float
    lora_dropout: float
    bias: str
    task_type: str | None
    target_modules: list[str] | str | None
    target_parameters: list[str] | None
    exclude_modules: list[str] | str | None
    modules_to_save: list[str] | None
    layers_pattern: list[str] | str | None
    layers_to_transform: list[int] | int | None
    layer_replication: list[list[int]] | None
    rank_pattern: dict[str, int] | None
    alpha_pattern: dict[str, float] | None
    trainable_token_indices: list[int] | dict[str, list[int]] | None
    alora_invocation_tokens: list[int] | None
    init_lora_weights: bool | str | None


def check_adapter_files(directory: Path) -> None:
    """Raises InputError for an adapter that no library should load. See `read_adapter_config`; tensors are not read.

    Args:
        directory: the adapter.
    """
    read_adapter_config(directory)


def _check_weights(file: Path) -> Header:
    check_contained(file, file.parent)
    return read_header(file)


def read_adapter_config(directory: Path) -> dict[str, Any]:
    """The contents of the config of a LoRA adapter.

    Args:
        directory: the adapter.

    Raises:
        InputError: it is missing, of another kind of adapter, makes PEFT import a module, names modules by an
            expression that may take endless time, or describes more than the weights beside it hold.
    """
    file = directory / ADAPTER_CONFIG
    check_contained(file, directory)
    config = read_json_object(file)
    if config.get("peft_type") != "LORA":
        raise InputError(f"{file}: it is not the config of a LoRA adapter. Merge other adapters into their base first.")
    if config.get("megatron_config"):
        raise InputError(f"{file}: its megatron_config makes PEFT import a module by its name. Remove the entry.")
    if (problem := type_problem(config, _AdapterConfig, "")) is not None:
        raise InputError(f"{file}: its {problem}. Get the adapter again.")
    _check_size(file, config)
    for key in _NAMES:
        for name in _texts(config.get(key)):
            if _REPETITIONS & set(name):
                raise InputError(
                    f"{file}: its {key} names modules by the expression {name!r}, whose search may take endless time. "
                    "List the names of the modules."
                )
    return config


def _check_size(file: Path, config: dict[str, Any]) -> None:
    """Refuses a config of which PEFT would make more than the adapter's weights can fill."""
    dimensions = [size for tensor in _check_weights(file.with_name(ADAPTER_WEIGHTS)).tensors for size in tensor.shape]
    largest = max(dimensions, default=0)
    for rank in (config.get("r", 0), *(config.get("rank_pattern") or {}).values()):
        if rank > largest:
            raise InputError(
                f"{file}: it gives the rank {rank}, and no tensor of {ADAPTER_WEIGHTS} is larger than {largest} in any "
                "dimension. Get the adapter again."
            )
    spans = config.get("layer_replication") or []
    if any(len(span) != 2 for span in spans) or sum(max(span[1] - span[0], 0) for span in spans) > _MOST_LAYERS:
        raise InputError(
            f"{file}: its layer_replication is not a list of pairs of layers, {_MOST_LAYERS} in all at most. Get the "
            "adapter again."
        )


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
