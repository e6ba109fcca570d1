"""The forms of files from which vectors are imported, told by their names. Nothing here needs torch."""

from __future__ import annotations

from pathlib import Path

from sea_export.errors import InputError
from sea_export.files.nearest_name import missing

__all__ = ["CONTROL_VECTOR_FORM", "MAXIMUM_BYTES", "check_source_file"]

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
    """The form of a file that is to be imported, by its name.

    Args:
        path: the file.

    Raises:
        InputError: it does not exist, or is of no form that can be imported.
    """
    if not path.exists():
        raise missing(path, "Give a file of vectors.")
    if (path / "adapter_config.json").exists():
        raise InputError(
            f"{path}: it is an adapter. What a LoRA adds depends on what a module reads, and an edit changes what a "
            "module gives, so that it cannot hold one. Merge the adapter into its base with PEFT's merge_and_unload."
        )
    if path.is_dir() or path.suffix.lower() not in _FORMS:
        raise InputError(f"{path}: it is no file of vectors. Give one that ends in {', '.join(_FORMS)}.")
    if path.stat().st_size > MAXIMUM_BYTES:
        raise InputError(
            f"{path}: it has more than {MAXIMUM_BYTES >> 20} MB, which vectors do not need. Give a file of vectors "
            "alone."
        )
    return _FORMS[path.suffix.lower()]
