"""The forms of what is imported, files of vectors and adapters, told by their names. Nothing here needs torch."""

from __future__ import annotations

from pathlib import Path

from sea_export.errors import InputError
from sea_export.files.nearest_name import missing
from sea_export.model.adapter_files import ADAPTER_CONFIG

__all__ = ["ADAPTER_FORM", "CONTROL_VECTOR_FORM", "MAXIMUM_BYTES", "check_source_file"]

ADAPTER_FORM = "PEFT adapter"
CONTROL_VECTOR_FORM = "GGUF control vector"
MAXIMUM_BYTES = 1 << 27
"""The most bytes of numbers that are read: many times those of a vector for each layer of the largest models."""
_FORMS = {
    ".gguf": CONTROL_VECTOR_FORM,
    ".safetensors": "safetensors",
    ".npz": "npz",
    ".npy": "npy",
    ".json": "JSON",
    ".pt": "PyTorch pickle",
    ".pth": "PyTorch pickle",
    ".bin": "PyTorch pickle",
}
"""How the name of a file ends -> its form."""


def check_source_file(path: Path) -> str:
    """The form of what is to be imported, by its name.

    Args:
        path: a file of vectors, or the directory of an adapter.

    Raises:
        InputError: it does not exist, or is of no form that can be imported.
    """
    if not path.exists():
        raise missing(path, "Give a file of vectors, or the directory of an adapter.")
    if (path / ADAPTER_CONFIG).exists():
        return ADAPTER_FORM
    if path.is_dir():
        raise InputError(f"{path}: it has no {ADAPTER_CONFIG}. Give the directory of an adapter, or a file of vectors.")
    if path.suffix.lower() not in _FORMS:
        raise InputError(f"{path}: it is no file of vectors. Give one that ends in {', '.join(_FORMS)}.")
    if path.stat().st_size > MAXIMUM_BYTES:
        raise InputError(
            f"{path}: it has more than {MAXIMUM_BYTES >> 20} MB, which vectors do not need. Give a file of vectors "
            "alone."
        )
    return _FORMS[path.suffix.lower()]
