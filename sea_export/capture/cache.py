"""Captured activations in files, so that another fit with the same activations runs no forward pass.

A cache directory has one folder for each combination of what decides activations: the model, the demonstrations as
tokens, and the capture options. In the folder are parts: safetensors files with the activations of some targets over
some demonstrations. A part appears when it is complete, and it never changes. So an interrupted capture goes on where
it stopped, and several runs can use a cache at the same time. Unfinished parts of killed runs are removed by the next
run.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sea_export.capture.activations import Activations
from sea_export.demonstrations.tokenize import TokenizedDemonstration
from sea_export.errors import InputError, SeaExportError, first_line, reason
from sea_export.files.writing import flush
from sea_export.locks import scratch_directory
from sea_export.model.safetensors_header import read_header
from sea_export.model.targets import Target
from sea_export.options import CaptureOptions

__all__ = ["ActivationCache", "cached_bytes", "capture_key"]

_FORMAT_VERSION = 1
_SUFFIX = ".safetensors"
_INDICES = "demonstrations"
_KINDS = ("neutral", "positive", "negative")
_KEY_DIGITS = 32


def capture_key(
    model: Mapping[str, Any], demonstrations: Sequence[TokenizedDemonstration], options: CaptureOptions
) -> dict[str, Any]:
    """Everything that decides activations, as plain JSON data.

    Args:
        model: what identifies the model and the dtype in which it computes.
        demonstrations: as tokens, so that the tokenizer and the template need not be named.
        options: the capture options. Those that have no effect on the activations are left out.
    """
    tokens = json.dumps([[one.prompt, one.positive, one.negative] for one in demonstrations])
    return {
        "format_version": _FORMAT_VERSION,
        "model": dict(model),
        "demonstrations": hashlib.sha256(tokens.encode()).hexdigest(),
        "site": options.site,
        "position": options.position,
        "seed": options.seed if options.position == "random" else None,
        "neutral": options.neutral,
        "neutral_tokens": options.neutral_tokens if options.neutral == "generated" else None,
    }


@dataclass(frozen=True)
class _Part:
    file: Path
    indices: tuple[int, ...]
    targets: frozenset[Target]


class ActivationCache:
    """The folder of a cache directory that belongs to one key."""

    def __init__(self, directory: Path, key: Mapping[str, Any], size: int) -> None:
        """Opens the folder, or makes it.

        Args:
            directory: the cache directory, made if it is missing.
            key: see `capture_key`.
            size: the number of features of an activation.

        Raises:
            InputError: the directory cannot be used, or a part in it is damaged.
        """
        text = json.dumps(key, indent=2, sort_keys=True)
        self.folder = directory / hashlib.sha256(text.encode()).hexdigest()[:_KEY_DIGITS]
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._write("key.json", lambda file: file.write_text(text + "\n", encoding="utf-8"))
        except OSError as error:
            raise InputError(
                f"--cache: {directory} cannot be used ({error.strerror}). Choose another directory."
            ) from error
        self._parts = [_read_part(file, size) for file in sorted(self.folder.glob(f"*{_SUFFIX}"))]

    def missing(self, targets: Sequence[Target], indices: Sequence[int]) -> tuple[list[Target], list[int]]:
        """The targets that are not complete, and the demonstrations that any of them lacks.

        Args:
            targets: the targets to look for.
            indices: the demonstrations to look for.
        """
        lacking = {target: set(indices) for target in targets}
        for part in self._parts:
            for target in part.targets & lacking.keys():
                lacking[target] -= set(part.indices)
        wanted = [target for target in targets if lacking[target]]
        return wanted, sorted(set().union(*lacking.values()))

    def add(self, indices: Sequence[int], activations: Mapping[Target, Activations]) -> None:
        """Writes the activations of some demonstrations as one part.

        Args:
            indices: the demonstrations, in the order of the rows.
            activations: of each target, (len(indices), d).

        Raises:
            SeaExportError: the disk is full, or fails.
        """
        tensors = {
            str(target): torch.stack([getattr(one, kind) for kind in _KINDS]).float().cpu().contiguous()
            for target, one in activations.items()
        }
        tensors[_INDICES] = torch.tensor(indices)
        try:
            file = self._write(f"{secrets.token_hex(8)}{_SUFFIX}", lambda file: save_file(tensors, file))
        except (OSError, SafetensorError) as error:
            raise SeaExportError(
                f"{self.folder}: activations could not be written there ({reason(error)}). Make room and run again. "
                "Activations that are there already are used."
            ) from error
        self._parts.append(_Part(file, tuple(indices), frozenset(activations)))

    def read(self, target: Target, indices: Sequence[int]) -> Activations:
        """The activations of a target.

        Args:
            target: it is complete for these demonstrations.
            indices: the demonstrations.

        Returns:
            neutral, positive and negative rows, each (len(indices), d) float32, in the order of `indices`.
        """
        rows: dict[int, Tensor] = {}
        for part in self._parts:
            wanted = [row for row, index in enumerate(part.indices) if index in set(indices)]
            if target in part.targets and wanted:
                with safe_open(part.file, framework="pt") as stored:
                    kinds = stored.get_tensor(str(target))
                rows |= {part.indices[row]: kinds[:, row] for row in wanted}
        return Activations(*torch.stack([rows[index] for index in indices], dim=1))

    def _write(self, name: str, write: Callable[[Path], object]) -> Path:
        """Writes a file, which appears in the folder when it is complete."""
        with scratch_directory(".unfinished-", self.folder) as scratch:
            unfinished = scratch / "file"
            write(unfinished)
            flush(unfinished)
            return unfinished.replace(self.folder / name)


def cached_bytes(directory: Path) -> int:
    """The size in bytes of all activations in a cache directory, of all models and demonstrations."""
    return sum(file.stat().st_size for file in directory.glob(f"*/*{_SUFFIX}"))


def _read_part(file: Path, size: int) -> _Part:
    try:
        stored = {tensor.name: tensor for tensor in read_header(file).tensors}
        indices = stored.pop(_INDICES, None)
        if indices is None or indices.dtype != torch.int64 or len(indices.shape) != 1 or not stored:
            raise ValueError(f"it has no list of {_INDICES}, or no activations")
        for tensor in stored.values():
            if tensor.dtype != torch.float32 or tensor.shape != (len(_KINDS), *indices.shape, size):
                raise ValueError(
                    f"{tensor.name} is not of {len(_KINDS)} kinds, {indices.shape[0]} rows and {size} features"
                )
        with safe_open(file, framework="pt") as opened:
            rows = tuple(opened.get_tensor(_INDICES).tolist())
        if min(rows, default=0) < 0 or len(set(rows)) < len(rows):
            raise ValueError("it numbers its demonstrations wrongly")
        return _Part(file, rows, frozenset(map(Target.parse, stored)))
    except (SafetensorError, OSError, ValueError, InputError) as error:
        raise InputError(f"{file}: this part of the cache is damaged ({first_line(error)}). Remove it.") from error
