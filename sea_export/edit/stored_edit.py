"""An edit on disk, for reading: `sea_edit.safetensors` with its tensors and `sea_edit.json` with everything else.

Everything is checked before any tensor is loaded, because somebody else may have written the files. Tensors are arrays
of numpy here: what only tells about an edit does not wait for torch. Changes of single weights are checked in
`sea_export.edit.stored_weight`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file

from sea_export.edit.layer_form import check_form
from sea_export.edit.provenance import Provenance
from sea_export.edit.stored_weight import StoredWeightChange, check_change_shapes, check_changes, stored_changes
from sea_export.edit.summary import LayerSummary, WeightSummary
from sea_export.errors import InputError, first_line
from sea_export.files.nearest_name import missing
from sea_export.files.reading import check_contained, read_json_object
from sea_export.files.typed import type_problem
from sea_export.model.safetensors_header import read_header
from sea_export.model.targets import Target

__all__ = [
    "DESCRIPTION_FILE",
    "FORMAT_VERSION",
    "TENSORS_FILE",
    "StoredEdit",
    "StoredLayer",
    "check_numbers",
    "read_stored_edit",
]

TENSORS_FILE = "sea_edit.safetensors"
DESCRIPTION_FILE = "sea_edit.json"
FORMAT_VERSION = 1

_LARGEST_NUMBER = 3e38  # no infinity in float32
_FACTORS = ("positive", "negative")
_MAPS = ("left", "right")
_VECTORS = ("scale", "shift", "reader")
_SPECTRA = ("positive_values", "negative_values")
_NUMBERS = ("identity", "strength")
_NUMBERS_OR_NONE = ("relative_change", "signature", "reader_error")
_DEFAULTS: Mapping[str, str | float] = {
    "feature_function": "identity",
    "length_scale": 1.0,
    "projections": "both",
    "normalization": "none",
}
"""What edits of earlier versions do not have, and what it is then."""


@dataclass(frozen=True)
class StoredLayer:
    """The edit of one target, as it is stored.

    Attributes:
        numbers: the fields of `sea_export.edit.layer_edit.LayerEdit` that are numbers or text.
        arrays: its tensors, float32; those that are None are missing.
    """

    numbers: Mapping[str, Any]
    arrays: Mapping[str, NDArray[np.float32]]

    def summary(self, target: Target) -> LayerSummary:
        """What is told about it.

        Args:
            target: its target.
        """
        squares = np.square(self.arrays["positive_values"].astype(np.float64))
        energy = float(squares.sum())
        return LayerSummary(
            target=target,
            positive_rank=self.arrays["positive"].shape[1],
            negative_rank=self.arrays["negative"].shape[1],
            map_rank=self.arrays["left"].shape[1] if "left" in self.arrays else None,
            spectrum=squares.size,
            first_share=float(squares[0]) / energy if energy > 0 else 0.0,
            relative_change=self.numbers["relative_change"],
            signature=self.numbers["signature"],
            reader_error=self.numbers["reader_error"],
            normalization=self.numbers["normalization"],
        )


@dataclass(frozen=True)
class StoredEdit:
    """An edit as it is stored: the edits of each target, the changes of single weights, and the provenance."""

    layers: Mapping[Target, tuple[StoredLayer, ...]]
    provenance: Mapping[str, Any]
    weight_changes: Mapping[str, tuple[StoredWeightChange, ...]] = field(default_factory=dict)
    """Name of a linear map in the model -> the changes of its weight."""

    @property
    def decoder_layers(self) -> tuple[int, ...]:
        """The numbers of the decoder layers in which anything is edited, sorted."""
        changed = {own[0].numbers["layer"] for own in self.weight_changes.values()} - {None}
        return tuple(sorted(changed | {target.layer for target in self.layers if target.in_decoder}))

    @property
    def summary(self) -> tuple[LayerSummary, ...]:
        """What is told about each layer edit, sorted by target."""
        return tuple(layer.summary(target) for target in sorted(self.layers) for layer in self.layers[target])

    @property
    def weight_summary(self) -> tuple[WeightSummary, ...]:
        """What is told about each weight change."""
        return tuple(change.summary(module) for module, own in self.weight_changes.items() for change in own)


def read_stored_edit(directory: Path) -> StoredEdit:
    """Reads an edit.

    Args:
        directory: what `sea_export.edit.storage.write_edit` wrote, or a checkpoint that sea-export wrote, whose
            `sea_edit/` is read.

    Raises:
        InputError: there is no edit, or it is damaged or of a later format.
    """
    if not directory.exists():
        raise missing(directory, "Give the directory of an edit.")
    output = directory
    if not (directory / DESCRIPTION_FILE).exists() and (directory / "sea_edit").is_dir():
        directory = directory / "sea_edit"
    for file in (directory / DESCRIPTION_FILE, directory / TENSORS_FILE):
        if not file.exists():
            raise InputError(
                f"{directory}: it holds no edit. Give a directory with {DESCRIPTION_FILE} and {TENSORS_FILE}."
            )
        check_contained(file, output)
    description = read_json_object(directory / DESCRIPTION_FILE, unique_keys=True)
    version = description.get("format_version")
    if version != FORMAT_VERSION:
        raise InputError(
            f"{directory}: its edit has format {version!r}, and this version reads {FORMAT_VERSION}. Upgrade "
            "sea-export."
        )
    try:
        _check_description(description)
        changes = description.get("weight_changes", {})
        _check_shapes(directory / TENSORS_FILE, description["layers"], changes)
        arrays = load_file(directory / TENSORS_FILE)
        layers = {
            Target.parse(target): tuple(
                _stored_layer(edits[index], arrays, f"{target}.{index}.") for index in range(len(edits))
            )
            for target, edits in description["layers"].items()
        }
        weight_changes = dict(stored_changes(changes, arrays))
    except (InputError, ValueError, SafetensorError, OSError) as error:
        raise InputError(f"{directory}: the edit in it is damaged ({first_line(error)}). Fit it again.") from error
    return StoredEdit(layers, description["provenance"], weight_changes)


def _check_description(description: Mapping[str, Any]) -> None:
    """Raises ValueError, with the reason, if a description is not that of an edit."""
    layers, provenance = description.get("layers"), description.get("provenance")
    if not isinstance(layers, dict) or not isinstance(provenance, dict):
        raise ValueError("it has no layers or no provenance")
    changes = description.get("weight_changes", {})
    check_changes(changes)
    if not (layers or changes) or not all(layers.values()):
        raise ValueError("it has no layer, or a layer without an edit")
    for target, edits in layers.items():
        if not isinstance(edits, list):
            raise ValueError(f"{target} is not a list of edits")
        for numbers in edits:
            check_numbers(numbers, target)
    if problem := type_problem(provenance, Provenance, ""):
        raise ValueError(problem)


def check_numbers(numbers: object, target: str) -> None:
    """Raises ValueError, with the reason, if these are not the numbers and texts of a layer edit.

    Args:
        numbers: what the description of an edit has, or will have, for one layer edit.
        target: its target, for messages.
    """
    if not isinstance(numbers, dict):
        raise ValueError(f"an edit of {target} is not an object")
    for name in (*_NUMBERS, *_NUMBERS_OR_NONE):
        if name not in numbers or not (
            _is_number(numbers[name]) or (name in _NUMBERS_OR_NONE and numbers[name] is None)
        ):
            raise ValueError(f"{name} of {target} is not a finite number")
    for name, value in numbers.items():
        if name in _DEFAULTS:
            if not (_is_number(value) if isinstance(_DEFAULTS[name], float) else isinstance(value, str)):
                raise ValueError(f"{name} of {target} is {value!r}")
        elif name not in (*_NUMBERS, *_NUMBERS_OR_NONE):
            raise ValueError(f"{target} has {name!r}, which does not belong to an edit")


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= _LARGEST_NUMBER


def _check_shapes(
    path: Path, layers: Mapping[str, Sequence[Mapping[str, Any]]], changes: Mapping[str, Sequence[object]]
) -> None:
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
            if {tensor.stored_as for tensor in own.values() if tensor is not None} != {"F32"}:
                raise ValueError(f"a tensor of {prefix[:-1]} is not stored in float32")
            if not _fit(shapes):
                raise ValueError(f"the tensors of {prefix[:-1]} do not fit one another")
    check_change_shapes(changes, stored)
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


def _stored_layer(numbers: Mapping[str, Any], stored: Mapping[str, NDArray[np.float32]], prefix: str) -> StoredLayer:
    names = (*_FACTORS, *_MAPS, *_VECTORS, *_SPECTRA)
    arrays = {name: stored[prefix + name] for name in names if prefix + name in stored}
    if not all(np.isfinite(array).all() for array in arrays.values()):
        raise ValueError(f"a tensor of {prefix[:-1]} is not finite")
    # JSON may write a float as an integer, which torch takes for one of 64 bits.
    found: dict[str, Any] = {
        **_DEFAULTS,
        **{name: float(one) if _is_number(one) else one for name, one in numbers.items()},
    }
    check_form(**{name: found[name] for name in _DEFAULTS})
    return StoredLayer(found, arrays)
