"""Outputs on the Hub: what a command needs of one, fetched into the local cache."""

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
    """The directory of an output: its own if it is a local one, else a snapshot of it without the model card.

    Args:
        output: a directory, or `REPO_ID` or `REPO_ID@REVISION`.

    Raises:
        InputError: there is no such output.
    """
    if Path(output).exists():
        return Path(output)
    snapshot = _snapshot(output, MANIFEST)
    # Not all that there is: others may have put further forms of the weights beside ours.
    files = [file for file in read_manifest(snapshot)["files"] if file != CARD]
    repo_id, _, _ = str(output).partition("@")
    return download_snapshot(repo_id, revision=snapshot.name, wanted=[glob.escape(file) for file in files])


def fetch_edit(output: str | Path) -> Path:
    """The directory of an edit, or of an output: a local one, or a snapshot of no more than the edit.

    Args:
        output: see `fetch_output`.

    Raises:
        InputError: there is no such output.
    """
    return Path(output) if Path(output).exists() else _snapshot(output, EDIT_DIRECTORY)


def _snapshot(output: str | Path, part: str) -> Path:
    """A snapshot of a file or directory that every output has."""
    repo_id, _, revision = str(output).partition("@")
    snapshot = download_snapshot(repo_id, revision=revision or None, wanted=[part, f"{part}/*"])
    if not (snapshot / part).exists():
        raise InputError(f"{output} on the Hub holds no {part}: it is not a checkpoint that sea-export wrote")
    return snapshot
