"""Writes the manifest and the model card of an output, always together."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from yaml import YAMLError

from sea_export.cards.model_card import model_card
from sea_export.errors import InputError, first_line
from sea_export.export.manifest import MANIFEST, read_manifest, write_manifest
from sea_export.files.digests import file_digest
from sea_export.files.writing import write_text
from sea_export.model.checkpoint import CARD

__all__ = ["check_describable", "update_description", "write_description"]

# What is raised for entries that are missing, or of another type than a run writes.
_DAMAGE = (
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TemplateError,
    TypeError,
    ValueError,
    YAMLError,
)


def check_describable(manifest: Mapping[str, Any], source: str, remedy: str) -> None:
    """Refuses what cannot become a model card and a manifest, before anything is computed or written.

    Args:
        manifest: a manifest, perhaps without digests and figures.
        source: the file that it is made from, for the message.
        remedy: what to do about it, in a sentence.

    Raises:
        InputError: an entry is not as a run writes it.
    """
    _card(manifest, source, remedy)
    try:
        json.dumps(manifest, ensure_ascii=False, allow_nan=False).encode()
    except ValueError as error:
        problem = first_line(error)
        raise InputError(f"{source}: it is damaged, and cannot be written again ({problem}). {remedy}") from error


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
    except _DAMAGE as error:
        problem = f"{type(error).__name__}: {first_line(error)}"
        raise InputError(
            f"{source}: it is damaged, and no model card can be made from it ({problem}). {remedy}"
        ) from error
