"""The manifest, `sea_export.json`: what an output was made from, how it was made, and what was measured."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sea_export.errors import InputError
from sea_export.export.formats import export_format, formats
from sea_export.export.manifest_record import ManifestRecord
from sea_export.files.digests import file_digest
from sea_export.files.nearest_name import missing
from sea_export.files.reading import read_json_object
from sea_export.files.typed import type_problem
from sea_export.files.writing import write_json
from sea_export.model.model_files import walk_files
from sea_export.model.own_code import needs_own_code
from sea_export.model.stored_dtypes import TORCH_NAMES
from sea_export.options import FORMATS, ExportOptions
from sea_export.text import dtype_name, visible
from sea_export.versions import library_versions

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from sea_export.edit.layer_edit import LayerEdit
    from sea_export.edit.spectral_edit import SpectralEdit
    from sea_export.export.write_report import WriteReport
    from sea_export.model.base import Base
    from sea_export.model.targets import Target

__all__ = [
    "MANIFEST",
    "check_base",
    "fits_of",
    "further_arguments",
    "make_manifest",
    "read_manifest",
    "write_manifest",
]

MANIFEST = "sea_export.json"
_MANIFEST_VERSION = 1
# The options of an export that decide what is written.
_EXPORT_OPTIONS = (
    "adapter_rank",
    "adapter_padding",
    "gguf_type",
    "verify",
    "force",
    "requantize",
    "compatible_config",
    "base_id",
)


def make_manifest(
    edit: SpectralEdit,
    base: Base,
    options: ExportOptions,
    report: WriteReport,
    *,
    verification: Mapping[str, Any] | None,
    details: Mapping[str, Any],
    base_facts: Mapping[str, Any],
) -> dict[str, Any]:
    """The contents of the manifest, with the digests of the files that are already written.

    Args:
        edit: the edit that was baked.
        base: the base.
        options: how it was baked.
        report: what was written, with the digests of the base's files.
        verification: the record of the verification; None if there was none.
        details: the format's own entry, by its key; empty if the format has none.
        base_facts: what the card of the output takes over from the base: see `sea_export.cards.base_card.base_facts`.
    """
    return {
        "manifest_version": _MANIFEST_VERSION,
        "format": options.format,
        "export": {
            **{name: getattr(options, name) for name in _EXPORT_OPTIONS},
            "trust_remote_code": base.trust_remote_code,
        },
        "versions": library_versions(),
        "base": {
            "name": base.name,
            "revision": base.revision,
            "dtype": dtype_name(_edited_dtype(base, report)),
            "dequantized": base.dequantized,
            "model_class": base.model_class,
            "own_code": needs_own_code(base.checkpoint.config),
            **base_facts,
            "files": report.base_digests,
        },
        "edit": dict(edit.provenance),
        "layers": [_layer_record(target, layer) for target in edit.targets for layer in edit.layers[target]],
        **({"weights": [weight.to_dict() for weight in edit.weight_changes.summary]} if edit.weight_changes else {}),
        "edited_tensors": list(report.edited),
        "added_tensors": list(report.added),
        "left_out_files": list(base.checkpoint.left_out()),
        **details,
        "verification": None if verification is None else dict(verification),
        "files": dict(report.digests),
    }


def _edited_dtype(base: Base, report: WriteReport) -> torch.dtype:
    """The dtype in which the base stores the largest tensor that was edited, or that it computes in."""
    tensors = base.checkpoint.tensors
    edited = [tensors[name] for name in report.edited if name in tensors] or [next(iter(tensors.values()))]
    largest = max(edited, key=lambda tensor: math.prod(tensor.shape))
    return largest.dtype if largest.dtype.is_floating_point else base.dtype


def _layer_record(target: Target, layer: LayerEdit) -> dict[str, Any]:
    return {
        "target": str(target),
        "positive_rank": layer.positive.shape[1],
        "negative_rank": layer.negative.shape[1],
        "positive_variance": _explained(layer.positive_values, layer.positive.shape[1]),
        "negative_variance": _explained(layer.negative_values, layer.negative.shape[1]),
        "map_rank": None if layer.left is None else layer.left.shape[1],
        "strength": layer.strength,
        "feature_function": layer.feature_function,
        "normalization": layer.normalization,
        "relative_change": layer.relative_change,
        "signature": layer.signature,
        "reader_error": layer.reader_error,
    }


def _explained(values: Tensor, rank: int) -> float | None:
    """The share of the squared spectrum (r,) that its first `rank` values explain; None if all values are zero."""
    squares = values.double().square()
    return float(squares[:rank].sum() / squares.sum()) if squares.any() else None


def write_manifest(directory: Path, manifest: Mapping[str, Any]) -> None:
    """Writes the manifest into a directory, with its files in the order of their names.

    Args:
        directory: an existing directory.
        manifest: the contents.
    """
    write_json(directory / MANIFEST, {**manifest, "files": dict(sorted(manifest["files"].items()))})


def further_arguments(manifest: Mapping[str, Any]) -> str:
    """The arguments that `from_pretrained` needs besides the place of an output, each after a comma; mostly none.

    Args:
        manifest: that of the output.
    """
    arguments = []
    if gguf := manifest.get("gguf"):
        arguments.append(f"gguf_file={json.dumps(visible(gguf['file']), ensure_ascii=False)}")
        arguments += [f"{name}={value}" for name, value in gguf["config"].items()]
    if export_format(manifest["format"]).runs_code or manifest["base"].get("own_code", False):
        arguments.append("trust_remote_code=True")
    return "".join(f", {argument}" for argument in arguments)


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of an output.

    Args:
        path: the output, or the manifest itself.

    Raises:
        InputError: there is none, it is of a later version, or it is damaged.
    """
    if not path.exists():
        raise missing(path, f"Give a checkpoint that sea-export wrote, or its {MANIFEST}.")
    if path.is_file() and path.suffix != ".json":
        raise InputError(f"{path}: it is no manifest. Give the directory that sea-export wrote, or its {MANIFEST}.")
    file = path if path.is_file() else path / MANIFEST
    if not file.is_file():
        raise InputError(
            f"{path}: it holds no {MANIFEST}, so it is not a checkpoint that sea-export wrote. Give one that it wrote."
        )
    if path.is_dir():
        for _ in walk_files(path, ()):
            pass  # raises for links that lead out of the output, because files will be written into it
    manifest = read_json_object(file)
    if "manifest_version" not in manifest:
        raise InputError(f"{file}: it is not a manifest that sea-export wrote. Give one that it wrote.")
    version = manifest["manifest_version"]
    if version != _MANIFEST_VERSION:
        raise InputError(
            f"{file}: it has manifest version {version!r}, and this program reads version {_MANIFEST_VERSION}. Upgrade "
            "sea-export."
        )
    problem = _problem(manifest)
    if problem is not None:
        raise InputError(f"{file}: it is damaged: {problem}. Export the edit again.")
    return manifest


def _problem(manifest: Mapping[str, Any]) -> str | None:
    """What is wrong with an entry that is read again, as a clause; None if all are as `make_manifest` writes them."""
    if problem := type_problem(manifest, ManifestRecord, ""):
        return problem
    format, base, adapter = manifest["format"], manifest["base"], manifest.get("adapter")
    if format not in FORMATS:
        return f"its format is not one of {', '.join(FORMATS)}"
    if base["dtype"] not in TORCH_NAMES.values():
        return "the dtype of its base is not a known one"
    names = (*manifest["files"], *base["files"])
    if any(name.startswith("/") or ".." in name.split("/") or "\0" in name for name in names):
        return "it names a file that is not in its directory"
    own_key = export_format(format).details_key
    for key in filter(None, (one.details_key for one in formats())):
        if (key == own_key) != (key in manifest):
            return f"it describes the {key} of another format, or lacks that of its own"
    gguf = manifest.get("gguf")
    if gguf and (gguf["file"] not in manifest["files"] or not all(map(str.isidentifier, gguf["config"]))):
        return "what it says of its GGUF file is not about a file of its own, or no arguments of Python"
    beside = manifest.get("gguf_adapter")
    if beside and not (set(beside["files"]) <= manifest["files"].keys() and beside["files"]):
        return "what it says of its GGUF files is not about files of its own"
    rank = adapter.get("rank_cap") if adapter else None
    if rank is not None and rank < 1:
        return "the rank of its adapter is not a positive number"
    return None


def check_base(base: Base, files: Mapping[str, str]) -> None:
    """Refuses a base that is not the one that an output was made from.

    Of a base that was converted again only the weights are compared, because the other files depend on the version of
    transformers.

    Args:
        base: the base.
        files: what the manifest says of the base's files: SHA-256, in hexadecimal, by relative path.

    Raises:
        InputError: one of its files is missing or has another digest. The message names it.
    """
    for file, digest in files.items():
        directory = base.checkpoint.directory
        if base.source is not None and file.endswith(".gguf"):
            directory = base.source.parent
        elif base.converted and file not in base.checkpoint.weight_files:
            continue
        path = directory / file
        if not path.is_file():
            raise InputError(f"{base.name}: it has no {file}, and the base of the manifest has one. Give that base.")
        if file_digest(path) != digest:
            raise InputError(
                f"{base.name}: its {file} is not that of the base of the manifest (SHA-256 {digest[:12]}…). The base "
                "was changed, or it is another one. Give the base as it was."
            )


def fits_of(provenance: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The provenance of each fit whose product an edit is, in the order in which they are applied.

    Args:
        provenance: that of the edit.
    """
    if "composed" not in provenance:
        yield provenance
        return
    for member in provenance["composed"]:
        yield from fits_of(member)
