"""An adapter of PEFT, read without running any code that it names: its config, and its tensors.

Every entry of the config that could change what the adapter does is either handed on to PEFT or refused by its name.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import LoraConfig
from torch import Tensor

from sea_export.errors import InputError
from sea_export.files.digests import file_digest
from sea_export.importing.source_forms import check_source_file
from sea_export.model.adapter_files import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    read_adapter_config,
    read_adapter_weights,
)
from sea_export.model.safetensors_header import read_header

__all__ = ["AdapterSource", "read_adapter_source"]

_USED = (
    "r",
    "lora_alpha",
    "target_modules",
    "exclude_modules",
    "layers_to_transform",
    "layers_pattern",
    "rank_pattern",
    "alpha_pattern",
    "use_rslora",
    "use_dora",
    "fan_in_fan_out",
)
"""The entries that say where an adapter is, and what it does there."""
_WITHOUT_EFFECT = (
    "peft_type",
    "peft_version",
    "task_type",
    "auto_mapping",
    "base_model_name_or_path",
    "revision",
    "inference_mode",
    "lora_dropout",
    "init_lora_weights",
    "eva_config",
    "loftq_config",
    "megatron_core",
    "runtime_config",
)
"""Those that tell of its origin and its training alone, with the initializations below."""
_INITIALIZATIONS = (True, False, None, "gaussian", "orthogonal", "eva")
"""The initializations that leave the weights of the base as they are. All others of PEFT change them first, so that the
adapter is not for the base but for what they make of it."""
_FLOATS = ("F64", "F32", "F16", "BF16")


@dataclass(frozen=True)
class AdapterSource:
    """A LoRA or DoRA adapter."""

    name: str
    """The name of its directory, without its path."""
    sha256: str
    """That of its weights, in hexadecimal."""
    config_sha256: str
    """That of its config."""
    config: LoraConfig
    """What says where it is, and what it does there. Everything else is as PEFT has it by default."""
    tensors: Mapping[str, Tensor]
    """Its tensors by the names of the file."""
    base: str | None
    """What it calls its base."""

    @property
    def form(self) -> str:
        """What kind of adapter it is."""
        return "PEFT DoRA" if self.config.use_dora else "PEFT LoRA"


def read_adapter_source(directory: Path) -> AdapterSource:
    """Reads an adapter.

    Args:
        directory: what PEFT's `save_pretrained` wrote.

    Raises:
        InputError: it is damaged, of another kind than LoRA and DoRA, or has an entry that is not known or not
            supported. The message names it.
    """
    check_source_file(directory)
    weights, described = directory / ADAPTER_WEIGHTS, directory / ADAPTER_CONFIG
    if not weights.exists():
        raise InputError(
            f"{directory}: it has no {ADAPTER_WEIGHTS}. Load the adapter with PEFT, and save it again, which writes "
            "that file."
        )
    entries = read_adapter_config(directory)
    _check_entries(described, entries)
    for tensor in read_header(weights).tensors:
        if tensor.stored_as not in _FLOATS:
            raise InputError(f"{weights}: {tensor.name} is stored as {tensor.stored_as}. Save it in floating point.")
    used = {name: entries[name] for name in _USED if entries.get(name) is not None}
    return AdapterSource(
        name=directory.resolve().name,
        sha256=file_digest(weights),
        config_sha256=file_digest(described),
        config=LoraConfig(**used),
        tensors=read_adapter_weights(directory),
        base=entries.get("base_model_name_or_path"),
    )


def _check_entries(file: Path, entries: Mapping[str, Any]) -> None:
    """Refuses entries that would change what the adapter does, and that nothing here knows."""
    initialization = entries.get("init_lora_weights")
    if initialization not in _INITIALIZATIONS:
        raise InputError(
            f"{file}: its init_lora_weights is {initialization!r}, by which PEFT changes the weights of the base "
            "before it adds the adapter. Let PEFT save it as a plain LoRA (path_initial_model_for_weight_conversion)."
        )
    for name in ("use_rslora", "use_dora", "fan_in_fan_out"):
        if not isinstance(entries.get(name, False), (bool, type(None))):
            raise InputError(f"{file}: its {name} is neither true nor false. Get the adapter again.")
    for name in ("r", "lora_alpha"):
        if name in entries and not entries[name]:
            raise InputError(f"{file}: its {name} is {entries[name]!r}, so that it does nothing. Give another adapter.")
    defaults = {field.name: field.default for field in dataclasses.fields(LoraConfig)}
    for name, value in entries.items():
        if name in (*_USED, *_WITHOUT_EFFECT) or not value or value == "none" or value == defaults.get(name):
            continue
        if name in defaults:
            raise InputError(
                f"{file}: its {name} is not supported, and it changes what the adapter does. Merge the adapter into "
                "its base with PEFT's merge_and_unload."
            )
        raise InputError(f"{file}: it has an entry {name}, which is not known. Upgrade PEFT, or remove the entry.")
