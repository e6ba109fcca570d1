"""Captured activations in files, so that another fit with the same activations runs no forward pass.

What decides activations is the model, the demonstrations as tokens, and the capture options. A part holds the
activations of some targets over some demonstrations, so that an interrupted capture goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from sea_export.capture.activations import Activations
from sea_export.capture.cache_folder import CacheFolder, reading_part
from sea_export.demonstrations.tokenize import TokenizedDemonstration
from sea_export.model.safetensors_header import read_header
from sea_export.model.targets import Target
from sea_export.options import CaptureOptions

__all__ = ["ActivationCache", "capture_key", "tokens_digest"]

_FORMAT_VERSION = 1
_INDICES = "demonstrations"
_KINDS = ("neutral", "positive", "negative")


def capture_key(
    model: Mapping[str, Any], demonstrations: Sequence[TokenizedDemonstration], options: CaptureOptions
) -> dict[str, Any]:
    """Everything that decides activations, as plain JSON data.

    Args:
        model: what identifies the model and the dtype in which it computes.
        demonstrations: as tokens, so that the tokenizer and the template need not be named.
        options: the capture options. Those that have no effect on the activations are left out.
    """
    return {
        "format_version": _FORMAT_VERSION,
        "model": dict(model),
        "demonstrations": tokens_digest(demonstrations),
        "site": options.site,
        "position": options.position,
        "seed": options.seed if options.position == "random" else None,
        "neutral": options.neutral,
        "neutral_tokens": options.neutral_tokens if options.neutral == "generated" else None,
    }


def tokens_digest(demonstrations: Sequence[TokenizedDemonstration]) -> str:
    """The SHA-256, in hexadecimal, of the tokens of demonstrations."""
    tokens = json.dumps([[one.prompt, one.positive, one.negative] for one in demonstrations])
    return hashlib.sha256(tokens.encode()).hexdigest()


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
        self._folder = CacheFolder(directory, key)
        self._parts = [_read_part(file, size) for file in self._folder.parts]

    @property
    def folder(self) -> Path:
        """Where the parts are."""
        return self._folder.path

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
        file = self._folder.add(tensors, "activations")
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


def _read_part(file: Path, size: int) -> _Part:
    with reading_part(file):
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
