"""`sea_export.json`: what an output was made from, how, and what was measured."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sea_export.base_model import BaseModel
from sea_export.edit import SpectralEdit
from sea_export.errors import InputError
from sea_export.export.merged import WriteReport
from sea_export.export.output import write_json
from sea_export.fitting import library_versions
from sea_export.options import SaveOptions
from sea_export.untrusted_files import read_json

if TYPE_CHECKING:
    from sea_export.verification import Verification

__all__ = ["MANIFEST", "make_manifest", "read_manifest", "write_manifest"]

MANIFEST = "sea_export.json"
_MANIFEST_VERSION = 1


def make_manifest(
    edit: SpectralEdit,
    base: BaseModel,
    options: SaveOptions,
    report: WriteReport,
    verification: Verification | None,
    details: Mapping[str, Any],
) -> dict[str, Any]:
    """What the manifest says, with the digests of the copied files, but not of those still to be written.

    Args:
        edit: the edit that was baked.
        base: what it was baked into.
        options: how.
        report: what was written, with digests of the base's files.
        verification: its figures, or None if it was not verified.
        details: what else there is to say about an output of this format.
    """
    tensors = base.checkpoint.tensors
    stored = next((tensors[name] for name in report.edited if name in tensors), next(iter(tensors.values())))
    layers = [
        {
            "target": str(target),
            "positive_rank": layer.positive.shape[1],
            "negative_rank": layer.negative.shape[1],
            "feature_function": layer.feature_function,
            "normalization": layer.normalization,
            "relative_change": layer.relative_change,
            "signature": layer.signature,
            "reader_error": layer.reader_error,
        }
        for target in edit.targets
        for layer in edit.layers[target]
    ]
    return {
        "manifest_version": _MANIFEST_VERSION,
        "format": options.format,
        "versions": library_versions(),
        "base": {
            "name": base.name,
            "revision": base.revision,
            "dtype": str(stored.dtype).removeprefix("torch."),
            "dequantized": base.dequantized,
            "files": report.base_digests,
        },
        "edit": dict(edit.provenance),
        "layers": layers,
        "edited_tensors": list(report.edited),
        "added_tensors": list(report.added),
        "left_out_files": list(base.checkpoint.left_out()),
        **details,
        "verification": None if verification is None else asdict(verification),
        "files": dict(report.digests),
    }


def write_manifest(directory: Path, manifest: Mapping[str, Any]) -> None:
    """Writes the manifest into `directory`, with the SHA-256 digests that it lacks of other files there."""
    files = dict(manifest["files"])
    for path in sorted(directory.rglob("*")):
        name = path.relative_to(directory).as_posix()
        if path.is_file() and name != MANIFEST and name not in files:
            files[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    write_json(directory / MANIFEST, {**manifest, "files": dict(sorted(files.items()))})


def read_manifest(directory: Path) -> dict[str, Any]:
    """The manifest of an output.

    Raises:
        InputError: there is none, or it is of a later version.
    """
    if not (directory / MANIFEST).is_file():
        raise InputError(f"{directory} holds no {MANIFEST}: it is not a checkpoint that sea-export wrote")
    manifest: dict[str, Any] = read_json(directory / MANIFEST)
    if manifest.get("manifest_version") != _MANIFEST_VERSION:
        raise InputError(
            f"{directory} has manifest version {manifest.get('manifest_version')}, and this version reads "
            f"{_MANIFEST_VERSION}: upgrade sea-export"
        )
    return manifest
