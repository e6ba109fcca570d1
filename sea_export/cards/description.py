"""What an output says of itself: its manifest and its model card, which are written together."""

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
    """Writes README.md and `sea_export.json` into `directory`, with the SHA-256 digests that the manifest lacks.

    Args:
        directory: a complete checkpoint but for these files, and nothing else.
        manifest: see `sea_export.export.manifest.make_manifest`.

    Raises:
        InputError: the edit's account of where it comes from is not as a fit writes it.
    """
    write_text(directory / CARD, _card(manifest, "what the edit says of itself", "fit it"))
    files = dict(manifest["files"])
    for path in directory.rglob("*"):
        name = path.relative_to(directory).as_posix()
        if path.is_file() and name != MANIFEST and name not in files:
            files[name] = file_digest(path)
    write_manifest(directory, {**manifest, "files": files})


def update_description(output: Path, changes: Mapping[str, Any]) -> None:
    """Writes manifest and model card of a finished output anew, with some entries of the manifest changed.

    Files that have come into the output since are none of the run's, and stay out of the manifest.

    Args:
        output: a checkpoint that sea-export wrote.
        changes: entries of the manifest, such as `evaluation`, or the `repository` of the Hub that the card's snippets
            are to load from.

    Raises:
        InputError: `output` is not a checkpoint of ours, or its manifest is not as it was written.
    """
    manifest = {**read_manifest(output), **changes}
    write_text(output / CARD, _card(manifest, str(output / MANIFEST), "export the edit"))
    write_manifest(output, {**manifest, "files": {**manifest["files"], CARD: file_digest(output / CARD)}})


def _card(manifest: Mapping[str, Any], source: str, remedy: str) -> str:
    try:
        return model_card(manifest)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        problem = f"{type(error).__name__}: {first_line(error)}"
        raise InputError(
            f"{source} is damaged, and no model card can be made of it ({problem}): {remedy} anew"
        ) from error
