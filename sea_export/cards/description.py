"""Writes the manifest and the model card of an output, always together."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sea_export.cards.model_card import model_card
from sea_export.errors import InputError, first_line
from sea_export.export.manifest import MANIFEST, read_manifest, write_manifest
from sea_export.files.digests import file_digest
from sea_export.files.writing import write_text
from sea_export.model.checkpoint import CARD

__all__ = ["update_description", "write_description"]


def write_description(directory: Path, manifest: Mapping[str, Any]) -> None:
    """Writes README.md and `sea_export.json` into an output, and adds the missing SHA-256 digests to the manifest.

    Args:
        directory: the output, complete apart from these two files.
        manifest: what `sea_export.export.manifest.make_manifest` gave.

    Raises:
        InputError: the provenance of the edit is not as a fit writes it.
    """
    write_text(directory / CARD, _card(manifest, "sea_edit.json", "Fit the edit again."))
    files = dict(manifest["files"])
    for path in directory.rglob("*"):
        name = path.relative_to(directory).as_posix()
        if path.is_file() and name != MANIFEST and name not in files:
            files[name] = file_digest(path)
    write_manifest(directory, {**manifest, "files": files})


def update_description(output: Path, changes: Mapping[str, Any]) -> None:
    """Writes the manifest and the model card of a finished output again, with some entries of the manifest changed.

    Files that were added to the output later do not belong to the run, and are not added to the manifest.

    Args:
        output: a checkpoint that sea-export wrote.
        changes: entries of the manifest, such as `evaluation`, or the `repository` on the Hub from which the snippets
            of the card load the model.

    Raises:
        InputError: sea-export did not write the checkpoint, or its manifest is damaged.
    """
    manifest = {**read_manifest(output), **changes}
    write_text(output / CARD, _card(manifest, str(output / MANIFEST), "Export the edit again."))
    write_manifest(output, {**manifest, "files": {**manifest["files"], CARD: file_digest(output / CARD)}})


def _card(manifest: Mapping[str, Any], source: str, remedy: str) -> str:
    try:
        return model_card(manifest)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        problem = f"{type(error).__name__}: {first_line(error)}"
        raise InputError(
            f"{source}: it is damaged, and no model card can be made from it ({problem}). {remedy}"
        ) from error
