"""What an output says of itself: its manifest and its model card, which are written together."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sea_export.checkpoint import CARD
from sea_export.export.manifest import read_manifest, write_manifest
from sea_export.model_card import model_card

__all__ = ["update_description", "write_description"]


def write_description(directory: Path, manifest: Mapping[str, Any]) -> None:
    """Writes README.md and `sea_export.json` into `directory`.

    Args:
        directory: a complete checkpoint but for these files.
        manifest: see `sea_export.export.manifest.make_manifest`.
    """
    (directory / CARD).write_text(model_card(manifest), encoding="utf-8")
    files = {name: digest for name, digest in manifest["files"].items() if name != CARD}
    write_manifest(directory, {**manifest, "files": files})


def update_description(output: Path, changes: Mapping[str, Any]) -> None:
    """Writes manifest and model card of a finished output anew, with some entries of the manifest changed.

    Args:
        output: a checkpoint that sea-export wrote.
        changes: entries of the manifest, such as `evaluation`, or the `repository` of the Hub that the card's snippets
            are to load from.

    Raises:
        InputError: `output` is not a checkpoint of ours.
    """
    write_description(output, {**read_manifest(output), **changes})
