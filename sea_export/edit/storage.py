"""An edit on disk: `sea_edit.safetensors` with its tensors and `sea_edit.json` with everything else.

Everything is checked before any tensor is loaded, because somebody else may have written the files.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from sea_export.edit.layer_edit import LayerEdit
from sea_export.edit.provenance import Provenance
from sea_export.errors import InputError, SeaExportError, first_line
from sea_export.files.reading import check_contained, read_json_object
from sea_export.files.typed import type_problem
from sea_export.files.writing import write_tensors
from sea_export.model.safetensors_header import read_header

__all__ = ["read_edit", "write_edit"]

_TENSORS_FILE = "sea_edit.safetensors"
_DESCRIPTION_FILE = "sea_edit.json"
_FORMAT_VERSION = 1

_LARGEST_NUMBER = 3e38  # no infinity in float32
_FACTORS = ("positive", "negative")
_MAPS = ("left", "right")
_VECTORS = ("scale", "shift", "reader")
_SPECTRA = ("positive_values", "negative_values")
_NUMBERS = ("identity", "strength", "relative_change", "signature")
_NUMBERS_OR_NONE = ("reader_error",)
_DEFAULTS = {"feature_function": str, "length_scale": float, "projections": str, "normalization": str}
"""What edits of earlier versions do not have, with the type of its value."""


def write_edit(directory: Path, layers: Mapping[str, Sequence[LayerEdit]], provenance: Mapping[str, Any]) -> None:
    """Writes an edit. The same edit gives the same bytes.

    Args:
        directory: where, made if it is missing.
        layers: the edits of each target, by its name.
        provenance: plain JSON data.

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
    description = {
        "format_version": _FORMAT_VERSION,
        "layers": {target: [edit.numbers() for edit in edits] for target, edits in layers.items()},
        "provenance": dict(provenance),
    }
    write_tensors(directory / _TENSORS_FILE, tensors)
    (directory / _DESCRIPTION_FILE).write_text(
        json.dumps(description, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
    )


def _check_written(edit: LayerEdit, target: str) -> None:
    try:
        _check_numbers(edit.numbers(), target)
    except ValueError as error:
        raise SeaExportError(f"{target}: its edit cannot be stored, because {error}. Lower --strength.") from error


def read_edit(directory: Path) -> tuple[dict[str, tuple[LayerEdit, ...]], dict[str, Any]]:
    """Reads an edit.

    Args:
        directory: what `write_edit` wrote, or a checkpoint that sea-export wrote, whose `sea_edit/` is read.

    Returns:
        The edits of each target, by its name, and the provenance.

    Raises:
        InputError: there is no edit, or it is damaged or of a later format.
    """
    output = directory
    if not (directory / _DESCRIPTION_FILE).exists() and (directory / "sea_edit").is_dir():
        directory = directory / "sea_edit"
    for file in (directory / _DESCRIPTION_FILE, directory / _TENSORS_FILE):
        if not file.exists():
            raise InputError(
                f"{directory}: it holds no edit. Give a directory with {_DESCRIPTION_FILE} and {_TENSORS_FILE}."
            )
        check_contained(file, output)
    description = read_json_object(directory / _DESCRIPTION_FILE, unique_keys=True)
    version = description.get("format_version")
    if version != _FORMAT_VERSION:
        raise InputError(
            f"{directory}: its edit has format {version!r}, and this version reads {_FORMAT_VERSION}. Upgrade "
            "sea-export."
        )
    try:
        _check_description(description)
        _check_shapes(directory / _TENSORS_FILE, description["layers"])
        tensors = load_file(directory / _TENSORS_FILE)
        layers = {
            target: tuple(_layer_edit(edits[index], tensors, f"{target}.{index}.") for index in range(len(edits)))
            for target, edits in description["layers"].items()
        }
    except (InputError, ValueError, SafetensorError, OSError) as error:
        raise InputError(f"{directory}: the edit in it is damaged ({first_line(error)}). Fit it again.") from error
    return layers, description["provenance"]


def _check_description(description: Mapping[str, Any]) -> None:
    """Raises ValueError, with the reason, if a description is not that of an edit."""
    layers, provenance = description.get("layers"), description.get("provenance")
    if not isinstance(layers, dict) or not isinstance(provenance, dict):
        raise ValueError("it has no layers or no provenance")
    for target, edits in layers.items():
        if not isinstance(edits, list):
            raise ValueError(f"{target} is not a list of edits")
        for numbers in edits:
            _check_numbers(numbers, target)
    if problem := type_problem(provenance, Provenance, ""):
        raise ValueError(problem)


def _check_numbers(numbers: object, target: str) -> None:
    if not isinstance(numbers, dict):
        raise ValueError(f"an edit of {target} is not an object")
    for name in (*_NUMBERS, *_NUMBERS_OR_NONE):
        if name not in numbers or not (
            _is_number(numbers[name]) or (name in _NUMBERS_OR_NONE and numbers[name] is None)
        ):
            raise ValueError(f"{name} of {target} is not a finite number")
    for name, value in numbers.items():
        if name in _DEFAULTS:
            if not (_is_number(value) if _DEFAULTS[name] is float else isinstance(value, str)):
                raise ValueError(f"{name} of {target} is {value!r}")
        elif name not in (*_NUMBERS, *_NUMBERS_OR_NONE):
            raise ValueError(f"{target} has {name!r}, which does not belong to an edit")


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= _LARGEST_NUMBER


def _check_shapes(path: Path, layers: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Raises ValueError if a file holds other tensors than those of the edits, or shapes that do not fit."""
    stored = {tensor.name: tensor for tensor in read_header(path).tensors}
    for target, edits in layers.items():
        for position in range(len(edits)):
            prefix = f"{target}.{position}."
            own = {name: stored.pop(prefix + name, None) for name in (*_FACTORS, *_MAPS, *_VECTORS, *_SPECTRA)}
            missing = [name for name in (*_FACTORS, *_SPECTRA) if own[name] is None]
            if missing:
                raise ValueError(f"there is no tensor {prefix}{missing[0]}")
            shapes = {name: tensor.shape for name, tensor in own.items() if tensor is not None}
            if {tensor.dtype for tensor in own.values() if tensor is not None} != {torch.float32}:
                raise ValueError(f"a tensor of {prefix[:-1]} is not stored in float32")
            if not _fit(shapes):
                raise ValueError(f"the tensors of {prefix[:-1]} do not fit one another")
    if stored:
        raise ValueError(f"there is a tensor {min(stored)}, which does not belong to the edit")


def _fit(shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether these are the shapes of one edit: (d, k) factors, (d, k) and (k, d) maps, (d,) vectors, (r,) spectra."""
    left, right = shapes.get("left"), shapes.get("right")
    if left != (None if right is None else right[::-1]):
        return False
    sizes = {shapes[name][0] for name in (*_FACTORS, "left", *_VECTORS) if shapes.get(name)}
    return (
        len(sizes) == 1
        and all(
            len(shapes[name]) == 2 and shapes[name][1] <= shapes[name][0]
            for name in (*_FACTORS, "left")
            if name in shapes
        )
        and all(len(shapes[name]) == 1 for name in (*_VECTORS, *_SPECTRA) if name in shapes)
    )


def _layer_edit(numbers: Mapping[str, Any], tensors: Mapping[str, Tensor], prefix: str) -> LayerEdit:
    own = {name: tensors.get(prefix + name) for name in (*_FACTORS, *_MAPS, *_VECTORS, *_SPECTRA)}
    # JSON may write a float as an integer, which torch takes for one of 64 bits.
    fields: dict[str, Any] = {**own, **{name: float(one) if _is_number(one) else one for name, one in numbers.items()}}
    edit = LayerEdit(**fields)
    if not edit.is_finite:
        raise ValueError(f"a tensor of {prefix[:-1]} is not finite")
    _ = edit.feature  # checks the name and the length scale
    return edit
