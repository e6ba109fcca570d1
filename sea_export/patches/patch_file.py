"""A patch on disk, for reading: one safetensors file, whose metadata says what its tensors are for.

The tensors are those that differ from the base's, in their own dtype and shape, and everything else as bytes. So what
is in a patch can be seen by every program that reads safetensors, and nothing in it runs. Somebody else may have
written it: everything that it says is checked here before anything is done with it.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from sea_export.errors import InputError, SeaExportError, first_line
from sea_export.export.manifest import MANIFEST
from sea_export.files.nearest_name import missing
from sea_export.files.reading import parse_json
from sea_export.files.typed import type_problem
from sea_export.model.safetensors_header import StoredTensor, read_header
from sea_export.patches.patch_pieces import Data, Fold, PieceRecord, ResultFile, piece_of, record_of
from sea_export.text import is_utf8

__all__ = ["EDIT_FILES", "BaseFile", "Patch", "metadata_of", "read_patch"]

EDIT_FILES = ("sea_edit/sea_edit.json", "sea_edit/sea_edit.safetensors")
"""The files of the output that hold the edit, which folds use."""

_DESCRIPTION = "sea_export_patch"
_DIGEST = "sea_export_patch_sha256"
_FORMAT_VERSION = 1
_SHA256 = re.compile(r"[0-9a-f]{64}")
_MAXIMUM_NAME_BYTES = 255
_CHUNK_BYTES = 1 << 20


class _BaseFileRecord(TypedDict):
    size: int
    sha256: str


class _BaseRecord(TypedDict):
    name: str
    revision: str | None
    files: dict[str, _BaseFileRecord]


class _FileRecord(TypedDict):
    size: int
    sha256: str
    source: str | None
    pieces: list[PieceRecord]


class _Description(TypedDict):
    format_version: int
    base: _BaseRecord
    files: dict[str, _FileRecord]


@dataclass(frozen=True)
class BaseFile:
    """A file of the base: its size in bytes, and its SHA-256 in hexadecimal."""

    size: int
    sha256: str


@dataclass(frozen=True)
class Patch:
    """A patch, after all checks that need neither its base nor the bytes of its tensors.

    Attributes:
        path: its file.
        base_name: what the base is called.
        revision: the revision of the base on the Hub; None for a local one.
        base_files: the files of the base, by relative path.
        files: the files of the output, by relative path.
        tensors: its tensors, by name.
    """

    path: Path
    base_name: str
    revision: str | None
    base_files: Mapping[str, BaseFile]
    files: Mapping[str, ResultFile]
    tensors: Mapping[str, StoredTensor]

    @property
    def output_bytes(self) -> int:
        """The size of the output."""
        return sum(file.size for file in self.files.values())

    def chunks(self, name: str) -> Iterator[memoryview]:
        """The bytes of a tensor, some at a time.

        Args:
            name: its name.

        Raises:
            SeaExportError: the file became shorter since it was opened.
        """
        tensor = self.tensors[name]
        with open(self.path, "rb") as stream:
            stream.seek(tensor.start)
            left = tensor.end - tensor.start
            while left:
                data = stream.read(min(left, _CHUNK_BYTES))
                if not data:
                    raise SeaExportError(
                        f"{self.path}: it changed while it was read. Make sure that nothing writes to it."
                    )
                left -= len(data)
                yield memoryview(data)


def metadata_of(
    base_name: str, revision: str | None, base_files: Mapping[str, BaseFile], files: Mapping[str, ResultFile]
) -> dict[str, str]:
    """The metadata of the file of a patch.

    Args:
        base_name: see `Patch`.
        revision: see `Patch`.
        base_files: see `Patch`.
        files: see `Patch`.
    """
    described: dict[str, Any] = {
        "format_version": _FORMAT_VERSION,
        "base": {
            "name": base_name,
            "revision": revision,
            "files": {name: vars(file) for name, file in sorted(base_files.items())},
        },
        "files": {
            name: {**vars(file), "pieces": [record_of(piece) for piece in file.pieces]}
            for name, file in sorted(files.items())
        },
    }
    text = json.dumps(described, ensure_ascii=False, separators=(",", ":"))
    return {"format": "pt", _DESCRIPTION: text, _DIGEST: hashlib.sha256(text.encode()).hexdigest()}


def read_patch(path: Path) -> Patch:
    """Reads a patch, without the bytes of its tensors.

    Args:
        path: its file.

    Raises:
        InputError: it is no patch, or damaged, of a later version, or names files outside of an output.
    """
    if not path.exists():
        raise missing(path, "Give a file that sea-export patch make wrote.")
    header = read_header(path)
    text = header.metadata.get(_DESCRIPTION)
    if text is None:
        raise InputError(f"{path}: it is no patch. Give a file that sea-export patch make wrote.")
    try:
        data = text.encode()
        if hashlib.sha256(data).hexdigest() != header.metadata.get(_DIGEST):
            raise ValueError("its description has another SHA-256 than it says")
        described = parse_json(data, unique_keys=True)
        version = described.get("format_version") if isinstance(described, dict) else None
        if type(version) is int and version > _FORMAT_VERSION:
            raise InputError(
                f"{path}: it has format {version}, and this program reads {_FORMAT_VERSION}. Upgrade sea-export."
            )
        return _checked(path, described, {tensor.name: tensor for tensor in header.tensors})
    except ValueError as error:
        raise InputError(f"{path}: it is damaged ({first_line(error)}). Get it again, or make it again.") from error


def _checked(path: Path, described: Any, tensors: Mapping[str, StoredTensor]) -> Patch:
    """Raises ValueError, with the reason, if a description contradicts itself or the tensors of its file."""
    if problem := type_problem(described, _Description, "its description"):
        raise ValueError(problem)
    base = described["base"]
    base_files = {name: BaseFile(one["size"], one["sha256"]) for name, one in base["files"].items()}
    files = {
        name: ResultFile(one["size"], one["sha256"], one["source"], tuple(map(piece_of, one["pieces"])))
        for name, one in described["files"].items()
    }
    _check_names(base_files)
    _check_names(files)
    for told in (base["files"], described["files"]):
        for name, one in told.items():
            if not _SHA256.fullmatch(one["sha256"]) or one["size"] < 0:
                raise ValueError(f"it gives no SHA-256 or no size for {name}")
    if MANIFEST not in files:
        raise ValueError(f"it makes no {MANIFEST}")
    for name, file in files.items():
        _check_file(name, file, base_files, tensors)
    if any(isinstance(piece, Fold) for file in files.values() for piece in file.pieces):
        _check_edit(files)
    used = {name for file in files.values() for name in file.tensors}
    if unused := tensors.keys() - used:
        raise ValueError(f"it holds {min(unused)}, which belongs to no file")
    return Patch(path, base["name"], base["revision"], base_files, files, tensors)


def _check_names(names: Mapping[str, object]) -> None:
    """Raises ValueError for a path that leads out of a directory, or that no directory can have beside the others."""
    for name in names:
        parts = name.split("/")
        # Nobody's patch makes hooks of a repository, which git would run.
        if any(
            part.lower() in ("", ".", "..", ".git") or len(part.encode(errors="replace")) > _MAXIMUM_NAME_BYTES
            for part in parts
        ):
            raise ValueError(f"{name[:100]!r} is not the name of a file in a directory")
        if not is_utf8(name) or not name.isprintable() or "\\" in name:
            raise ValueError(f"{name[:100]!r} is not the name of a file in a directory")
        if any("/".join(parts[:depth]) in names for depth in range(1, len(parts))):
            raise ValueError(f"{name[:100]!r} lies in a file")


def _check_file(
    name: str, file: ResultFile, base_files: Mapping[str, BaseFile], tensors: Mapping[str, StoredTensor]
) -> None:
    """Raises ValueError if the pieces of a file do not make it."""
    if file.source is not None and file.source not in base_files:
        raise ValueError(f"{name} is made from {file.source}, which is no file of the base")
    if any(tensor not in tensors for tensor in file.tensors):
        raise ValueError(f"it lacks a tensor of {name}")
    size = 0
    for piece in file.pieces:
        if isinstance(piece, Data):
            size += 0 if piece.tensor is None else _bytes_of(tensors[piece.tensor])
        else:
            size += piece.count
        if isinstance(piece, Fold):
            _check_fold(piece, tensors)
    if size != file.size or file.taken != (0 if file.source is None else base_files[file.source].size):
        raise ValueError(f"the pieces of {name} have other sizes than it and its source")


def _check_fold(fold: Fold, tensors: Mapping[str, StoredTensor]) -> None:
    if fold.positions is None or fold.values is None:
        return
    positions, values = tensors[fold.positions], tensors[fold.values]
    if (
        positions.stored_as != "I64"
        or values.stored_as != fold.stored_as
        or len(values.shape) != 1
        or positions.shape != values.shape
        or not 0 < values.shape[0] <= math.prod(fold.shape)
    ):
        raise ValueError(f"{fold.positions} and {fold.values} are not positions and values")


def _check_edit(files: Mapping[str, ResultFile]) -> None:
    """Raises ValueError unless the patch holds the whole edit."""
    for name in EDIT_FILES:
        pieces = files[name].pieces if name in files else ()
        if not pieces or not all(isinstance(piece, Data) for piece in pieces):
            raise ValueError(f"it folds an edit, and does not hold {name}")


def _bytes_of(tensor: StoredTensor) -> int:
    return tensor.end - tensor.start
