"""The models that can be evaluated: bases, and exports of every format."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sea_export.errors import InputError
from sea_export.export.adapter.adapter_check import base_of_adapter
from sea_export.export.adapter.adapter_plan import ADAPTER_CONFIG
from sea_export.model.base import Base, open_base
from sea_export.model.load_model import refused_by_library

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["LoadedModel", "open_loaded_model"]


@dataclass(frozen=True)
class LoadedModel:
    """A model in memory."""

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase


@contextmanager
def open_loaded_model(
    model: str,
    *,
    revision: str | None = None,
    dtype: torch.dtype | None = None,
    device: str = "cpu",
    trust_remote_code: bool = False,
) -> Iterator[LoadedModel]:
    """Loads a model.

    Args:
        model: a Hub id, a directory (also one of an adapter, which is put on the base that it names), or a `.gguf`
            file.
        revision: of a Hub id.
        dtype: what to compute in; None for as stored.
        device: `cpu`, `cuda`, `cuda:1`, …
        trust_remote_code: whether code that comes with the checkpoint may run.

    Yields:
        the model.

    Raises:
        InputError: it cannot be loaded.
    """
    directory = Path(model).expanduser()
    adapter = directory if (directory / ADAPTER_CONFIG).is_file() else None
    base_name = base_of_adapter(adapter) if adapter else model
    with open_base(base_name, revision=revision, dtype=dtype, trust_remote_code=trust_remote_code) as base:
        _check_code(base)
        if adapter is None:
            loaded = base.load_model(dtype=dtype, device=device)
        else:
            loaded = _load_adapter(adapter, base.checkpoint.directory, dtype, device, trust_remote_code)
        name = base.name if adapter is None else adapter.resolve().name
        yield LoadedModel(name, loaded, base.tokenizer)


def _check_code(base: Base) -> None:
    """Raises InputError for a model that only its own code can load, where that is not trusted."""
    from transformers import CONFIG_MAPPING

    config = base.checkpoint.config
    if "auto_map" in config and config.get("model_type") not in CONFIG_MAPPING and not base.trust_remote_code:
        raise InputError(f"{base.name} comes with code of its own: read it, and allow it with --trust-remote-code")


def _load_adapter(
    adapter: Path, base: Path, dtype: torch.dtype | None, device: str, trust_remote_code: bool
) -> PreTrainedModel:
    """The base with the adapter in its modules: a model of the base's own class."""
    from transformers import AutoModelForCausalLM

    with refused_by_library(f"the adapter in {adapter.name} cannot be put on its base"):
        model: Any = AutoModelForCausalLM.from_pretrained(
            base, torch_dtype=dtype or "auto", trust_remote_code=trust_remote_code
        )
        model.load_adapter(adapter)
        loaded: PreTrainedModel = model.to(device).eval()
        return loaded
