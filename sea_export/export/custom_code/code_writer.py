"""Writes a custom-code export to the disk."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from sea_export.export.custom_code.code_plan import BASE_PREFIX, CODE_FILE, EDIT_SHARD, OWN_FILES, CodePlan
from sea_export.export.streaming import FileCopy
from sea_export.export.write_report import WriteReport
from sea_export.files.cloning import clone_file
from sea_export.files.digests import file_digest
from sea_export.files.writing import write_json, write_tensors, write_text
from sea_export.model.base import Base
from sea_export.model.checkpoint import INDEX, Checkpoint

__all__ = ["write_custom_code"]


def write_custom_code(
    base: Base, destination: Path, plan: CodePlan, *, progress: Callable[[int], None] | None = None
) -> WriteReport:
    """Writes the files of the base and what the plan adds to them.

    Args:
        base: the base. It is only read.
        destination: an existing, empty directory.
        plan: what `plan_custom_code` gave.
        progress: called with the number of bytes written since the last call.

    Raises:
        SeaExportError: a file of the base changed while it was read.
        OSError: a file could not be written.
    """
    progress = progress or (lambda count: None)
    base_digests: dict[str, str] = {}
    digests: dict[str, str] = {}
    checkpoint = base.checkpoint
    replaced = {"config.json", checkpoint.index_file, *OWN_FILES}
    for file in checkpoint.weight_files:
        base_digests[file] = _copy_weights(base, file, destination / f"{BASE_PREFIX}{file}", progress, link=plan.link)
        digests[f"{BASE_PREFIX}{file}"] = base_digests[file]
    for file in checkpoint.side_files():
        if file in replaced:
            base_digests[file] = file_digest(checkpoint.directory / file)
            continue
        (destination / file).parent.mkdir(parents=True, exist_ok=True)
        with FileCopy(checkpoint.directory / file, destination / file, progress=progress) as copy:
            copy.copy_rest()
            base_digests[file], digests[file] = copy.digests()
    write_tensors(destination / EDIT_SHARD, plan.tensors)
    write_json(destination / INDEX, _index(checkpoint, plan.tensors))
    # Configs may have infinities, which JSON does not have, but all its readers among the users of configs know.
    write_text(destination / "config.json", json.dumps(plan.config, indent=2, ensure_ascii=False) + "\n")
    (destination / CODE_FILE).write_text(plan.source, encoding="utf-8")
    return WriteReport(base_digests, digests, edited=(), unchanged=(), added=tuple(plan.tensors))


def _copy_weights(base: Base, file: str, destination: Path, progress: Callable[[int], None], *, link: bool) -> str:
    """Copies a weight file, or makes a hard link to it. Returns its SHA-256."""
    source = base.checkpoint.directory / file
    if link:
        base.files.digests([file])  # because a link changes the state of the file, although not its contents
    if _linked(source, destination) if link else clone_file(source, destination):
        progress(source.stat().st_size)
        return base.files.digests([file])[file]
    with FileCopy(source, destination, progress=progress) as copy:
        copy.copy_rest()
        return copy.digests()[1]


def _linked(source: Path, destination: Path) -> bool:
    try:
        os.link(source.resolve(), destination)
    except OSError:  # another file system, or one without links
        return False
    return True


def _index(base: Checkpoint, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    size = sum(stored.end - stored.start for stored in base.tensors.values())
    size += sum(tensor.nbytes for tensor in tensors.values())
    weight_map = {name: f"{BASE_PREFIX}{stored.file}" for name, stored in base.tensors.items()}
    weight_map |= dict.fromkeys(tensors, EDIT_SHARD)
    return {"metadata": {"total_size": size}, "weight_map": dict(sorted(weight_map.items()))}
