"""Exports of GGUF files as what they are loaded from: one of the files in them."""

from __future__ import annotations

from pathlib import Path

from sea_export.errors import InputError
from sea_export.export.formats import export_format
from sea_export.export.manifest import MANIFEST, read_manifest
from sea_export.export.output import EDIT_DIRECTORY

__all__ = ["gguf_of_export"]


def gguf_of_export(model: str) -> str:
    """The GGUF file in the directory of an export that is one, or the first of its parts; the name itself for every
    other model.

    Args:
        model: a local directory, a `.gguf` file, or a Hub id.

    Raises:
        InputError: transformers cannot load what is in the directory, or its manifest is damaged.
    """
    directory = Path(model).expanduser()
    if not (directory / MANIFEST).is_file() or not any(directory.glob("*.gguf")):
        return model
    manifest = read_manifest(directory)
    if not export_format(manifest["format"]).loads_in_transformers:
        raise InputError(
            f"{model}: only llama.cpp loads it. Give {directory / EDIT_DIRECTORY}, the edit in it, which is applied to "
            "its base at run time."
        )
    gguf = manifest.get("gguf")
    return model if gguf is None else str(directory / gguf["file"])
