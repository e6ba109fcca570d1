"""Outputs on the Hub: the files that a command needs, downloaded into the local cache."""

from __future__ import annotations

import glob
from pathlib import Path

from sea_export.errors import InputError
from sea_export.export.manifest import MANIFEST, read_manifest
from sea_export.export.output import EDIT_DIRECTORY
from sea_export.model.checkpoint import CARD
from sea_export.model.download import download_snapshot

__all__ = ["fetch_edit", "fetch_output"]


def fetch_output(output: str | Path) -> Path:
    """The directory of an output: a local one as it is, one on the Hub as a snapshot without the model card.

    Args:
        output: a directory, or `REPO_ID` or `REPO_ID@REVISION`.

    Raises:
        InputError: there is no such output.
    """
    if Path(output).exists():
        return Path(output)
    snapshot = _snapshot(output, MANIFEST)
    # Only the files of the manifest, because other people may have added the weights in other forms.
    files = [file for file in read_manifest(snapshot)["files"] if file != CARD]
    repo_id, _, _ = str(output).partition("@")
    return download_snapshot(repo_id, revision=snapshot.name, wanted=[glob.escape(file) for file in files])


def fetch_edit(output: str | Path) -> Path:
    """The directory of an edit or of an output: a local one as it is, one on the Hub as a snapshot of the edit only.

    Args:
        output: see `fetch_output`.

    Raises:
        InputError: there is no such output.
    """
    return Path(output) if Path(output).exists() else _snapshot(output, EDIT_DIRECTORY)


def _snapshot(output: str | Path, part: str) -> Path:
    """A snapshot of one file or folder that every output has."""
    repo_id, _, revision = str(output).partition("@")
    snapshot = download_snapshot(repo_id, revision=revision or None, wanted=[part, f"{part}/*"])
    if not (snapshot / part).exists():
        raise InputError(
            f"{output}: it holds no {part} on the Hub, so it is not a checkpoint that sea-export wrote. Give one that "
            "it wrote."
        )
    return snapshot
