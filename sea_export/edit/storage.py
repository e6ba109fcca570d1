"""Layer edits and their files: see `sea_export.edit.stored_edit` for what is in these."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sea_export.edit.layer_edit import LayerEdit
from sea_export.edit.stored_edit import (
    DESCRIPTION_FILE,
    FORMAT_VERSION,
    TENSORS_FILE,
    StoredEdit,
    StoredLayer,
    check_numbers,
)
from sea_export.edit.stored_weight import StoredWeightChange, check_change_numbers, tensor_prefix
from sea_export.edit.weight_change import WeightChange
from sea_export.errors import SeaExportError
from sea_export.files.writing import write_tensors
from sea_export.model.targets import Target

__all__ = ["layers_of", "weight_changes_of", "write_edit"]


def write_edit(
    directory: Path,
    layers: Mapping[str, Sequence[LayerEdit]],
    provenance: Mapping[str, Any],
    weight_changes: Mapping[str, Sequence[WeightChange]],
) -> None:
    """Writes an edit. The same edit gives the same bytes.

    Args:
        directory: where, made if it is missing.
        layers: the edits of each target, by its name.
        provenance: plain JSON data.
        weight_changes: the changes of the weight of each linear map, by its name in the model.

    Raises:
        SeaExportError: an edit has a number that is too large to be read again.
    """
    directory.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, Tensor] = {}
    for target, edits in layers.items():
        for position, edit in enumerate(edits):
            _check_written(edit, target)
            for name, tensor in edit.tensors().items():
                # A copy, because an edit composed with itself has the same tensors twice.
                tensors[f"{target}.{position}.{name}"] = tensor.clone(memory_format=torch.contiguous_format)
    for module, changes in weight_changes.items():
        for position, change in enumerate(changes):
            _check_change(change, module)
            prefix = tensor_prefix(module, position)
            tensors |= {
                prefix + name: tensor.clone(memory_format=torch.contiguous_format)
                for name, tensor in change.tensors().items()
            }
    changed = {module: [change.numbers() for change in changes] for module, changes in weight_changes.items()}
    description = {
        "format_version": FORMAT_VERSION,
        "layers": {target: [edit.numbers() for edit in edits] for target, edits in layers.items()},
        **({"weight_changes": changed} if changed else {}),
        "provenance": dict(provenance),
    }
    write_tensors(directory / TENSORS_FILE, tensors)
    (directory / DESCRIPTION_FILE).write_text(
        json.dumps(description, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
    )


def _check_written(edit: LayerEdit, target: str) -> None:
    try:
        check_numbers(edit.numbers(), target)
    except ValueError as error:
        raise SeaExportError(f"{target}: its edit cannot be stored, because {error}. Lower --strength.") from error


def _check_change(change: WeightChange, module: str) -> None:
    try:
        check_change_numbers(change.numbers(), module)
    except ValueError as error:
        raise SeaExportError(f"{module}: its change cannot be stored, because {error}. Lower --strength.") from error


def layers_of(stored: StoredEdit) -> dict[Target, tuple[LayerEdit, ...]]:
    """The edits of each target of an edit that was read.

    Args:
        stored: what `sea_export.edit.stored_edit.read_stored_edit` gave. The edits share its memory.
    """
    return {target: tuple(map(_layer_edit, edits)) for target, edits in stored.layers.items()}


def _layer_edit(stored: StoredLayer) -> LayerEdit:
    tensors = {name: torch.from_numpy(array) for name, array in stored.arrays.items()}
    fields: dict[str, Any] = {"scale": None, "shift": None, "reader": None, **tensors, **stored.numbers}
    return LayerEdit(**fields)


def weight_changes_of(stored: StoredEdit) -> dict[str, tuple[WeightChange, ...]]:
    """The changes of the weight of each linear map of an edit that was read.

    Args:
        stored: see `layers_of`. The changes share its memory.
    """
    return {module: tuple(map(_weight_change, changes)) for module, changes in stored.weight_changes.items()}


def _weight_change(stored: StoredWeightChange) -> WeightChange:
    tensors = {name: torch.from_numpy(array) for name, array in stored.arrays.items()}
    fields: dict[str, Any] = {"scale": None, **tensors, **stored.numbers}
    return WeightChange(**fields)
