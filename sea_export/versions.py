"""What this program runs on: versions, platform, devices."""

from __future__ import annotations

import importlib.metadata
import platform

__all__ = ["devices", "library_versions", "system"]

_DECIDING = ("sea-export", "torch", "transformers", "safetensors", "peft", "huggingface-hub")
_OPTIONAL = ("accelerate", "bitsandbytes", "datasets", "gguf", "matplotlib", "numpy", "optuna", "pyarrow", "tokenizers")


def library_versions(*, optional: bool = False) -> dict[str, str]:
    """Versions of sea-export and of the libraries that decide its results.

    Args:
        optional: whether to name those as well that are not always needed, where they are installed.
    """
    versions = {name: importlib.metadata.version(name) for name in _DECIDING}
    if optional:
        installed = {distribution.metadata["Name"].lower() for distribution in importlib.metadata.distributions()}
        versions |= {name: importlib.metadata.version(name) for name in _OPTIONAL if name in installed}
    return versions


def system() -> dict[str, str]:
    """Python's version and the operating system's, by `python` and `platform`."""
    return {"python": platform.python_version(), "platform": platform.platform()}


def devices() -> tuple[str, ...]:
    """The devices that can compute, the processor first, each in a few words."""
    import torch

    found = [f"cpu: {platform.machine()}, {torch.get_num_threads()} threads"]
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        found.append(f"cuda:{index}: {properties.name}, {properties.total_memory / 1e9:.1f} GB")
    if torch.backends.mps.is_available():
        found.append("mps")
    return tuple(found)
