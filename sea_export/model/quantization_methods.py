"""Which quantized storages an edit can be folded into, told from a model's config. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from sea_export.errors import InputError
from sea_export.files.reading import read_json_object

__all__ = ["REQUANTIZABLE", "check_kept_storage", "quantization_method", "requantizable_method"]

REQUANTIZABLE = MappingProxyType({"fp8": "FP8 in blocks", "mxfp4": "MXFP4"})
"""The methods of quantization whose storage is known, and what they are called."""


def quantization_method(config: Mapping[str, Any]) -> str | None:
    """The method by which a model is quantized, as its config names it; None if it is not quantized.

    Args:
        config: the contents of its config.json.
    """
    settings = config.get("quantization_config")
    return str(settings.get("quant_method", "quantized")) if settings else None


def requantizable_method(name: str, config: Mapping[str, Any]) -> str:
    """The method by which a model is quantized, whose storage `--requantize` keeps.

    Args:
        name: the name of the model, for messages.
        config: the contents of its config.json.

    Raises:
        InputError: it is not quantized, or its storage is not one of those.
    """
    method = quantization_method(config)
    if method is None:
        raise InputError(f"--requantize: {name} is not quantized. Leave the option out.")
    if method not in REQUANTIZABLE:
        raise InputError(
            f"--requantize: {name} is quantized by {method}, and an edit can be folded into "
            f"{' and '.join(REQUANTIZABLE.values())} only. Choose --format adapter or custom-code, or --dequantize."
        )
    return method


def check_kept_storage(path: Path, name: str) -> None:
    """Refuses a model whose storage `--requantize` cannot keep, before it is opened. What is damaged is told there.

    Args:
        path: its directory, or its file.
        name: the name of the model, for messages.

    Raises:
        InputError: see `requantizable_method`; or it is a file, whose weights are unpacked.
    """
    if path.is_file():
        raise InputError(f"--requantize: {name} is unpacked into plain weights. Leave the option out.")
    file = path / "config.json"
    config = read_json_object(file) if file.is_file() else None
    if config is not None and isinstance(config.get("quantization_config"), dict | None):
        requantizable_method(name, config)
