"""The plan of a GGUF export: which tensors of the base's file hold the edit, determined before anything is written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sea_export.edit.fold import changes_weights, fold_bias
from sea_export.edit.spectral_edit import SpectralEdit
from sea_export.errors import InputError
from sea_export.export.formats import EditNeeds
from sea_export.export.gguf_file.base_entries import new_entries
from sea_export.export.gguf_file.encoding import GgufEdit, asked_type, check_finite, output_type
from sea_export.export.gguf_file.gguf_writer import GgufChanges
from sea_export.export.gguf_file.tensor_names import TAKEN_BIASES, tensor_namer
from sea_export.export.merged.merge_plan import with_new_biases
from sea_export.export.modelfile import modelfile, sampling_of_gguf
from sea_export.export.stored_projections import StoredProjections, find_stored_projections
from sea_export.model.architecture import OutputProjection, ProjectionWeight, decoder_layers
from sea_export.model.base import Base
from sea_export.model.base_files import BaseFiles
from sea_export.model.constant_place import NoPlaceForConstantError
from sea_export.model.gguf_header import GgufTensor
from sea_export.model.gguf_parts import GgufPart, read_parts
from sea_export.model.gguf_values import read_tensor
from sea_export.model.targets import Target
from sea_export.options import ExportOptions

__all__ = [
    "GgufPlan",
    "GgufProjections",
    "check_values",
    "estimated_bytes",
    "find_tensors",
    "locate_in_gguf",
    "plan_gguf",
]

# How far a value may be from the same value after the conversion of the base: rounding to bfloat16, and underflow.
_RELATIVE, _ABSOLUTE = 2**-8, 1e-6


@dataclass(frozen=True)
class GgufProjections:
    """The output projections of targets, and the tensors of the base's file that hold their parameters."""

    stored: StoredProjections
    """Where the converted base has them."""
    parts: tuple[GgufPart, ...]
    """The files of the base."""
    files: BaseFiles
    """The same, which are expected to stay as they are."""
    tensors: Mapping[str, GgufTensor]
    """Name of a parameter in the model -> the tensor that holds it."""
    new_biases: Mapping[str, str]
    """Name of a new bias in the model -> the name of its tensor."""

    @property
    def projections(self) -> tuple[OutputProjection, ...]:
        """The output projections of the targets."""
        return self.stored.projections


@dataclass(frozen=True)
class GgufPlan:
    """Everything that an export changes in the files of the base."""

    located: GgufProjections
    changes: GgufChanges

    @property
    def parts(self) -> tuple[GgufPart, ...]:
        """The files of the base."""
        return self.located.parts

    def changes_weight(self, weight: ProjectionWeight) -> bool:
        """Whether a weight of the targets changes. It does not where the edit only adds a constant."""
        return self.located.tensors[weight.name].name in self.changes.edits

    @property
    def loading_arguments(self) -> dict[str, str | bool]:
        """The arguments with which transformers loads the export: its first file, and that it has new biases."""
        return {"gguf_file": self.parts[0].path.name, **self.located.stored.config_changes}

    @property
    def modelfile(self) -> str | None:
        """The Modelfile for Ollama; None for a model in parts, of which its documentation does not tell."""
        first = self.parts[0]
        return None if len(self.parts) > 1 else modelfile(first.path.name, sampling_of_gguf(first.header))

    def remarks(self) -> list[str]:
        """What the user should know before anything is written."""
        tensors = {tensor.name: tensor for part in self.parts for tensor in part.header.tensors}
        edits = self.changes.edits.items()
        types = Counter((tensors[name].type.name, edit.type.name) for name, edit in edits if tensors[name].shape[1:])
        lines = [
            f"{count} tensors stay {old}." if old == new else f"{count} tensors of type {old} become {new}."
            for (old, new), count in types.items()
        ]
        if switches := self.located.stored.config_changes:
            arguments = ", ".join(f"{name}=True" for name in switches)
            lines.append(
                f"{len(self.changes.additions)} biases are added. llama.cpp reads them; transformers drops them unless "
                f"from_pretrained is called with {arguments}."
            )
        return lines

    def details(self) -> dict[str, Any]:
        """What the manifest says of the export."""
        return {
            "file": self.parts[0].path.name,
            "parts": len(self.parts),
            "types": {name: edit.type.name for name, edit in self.changes.edits.items()},
            "config": dict(self.located.stored.config_changes),
        }


def locate_in_gguf(
    base: Base, gguf: Path, targets: Iterable[Target], needs: EditNeeds, options: ExportOptions
) -> GgufProjections:
    """Finds the tensors of a GGUF file that hold the parameters of targets.

    Args:
        base: the base.
        gguf: its only file, or the first of its parts.
        targets: what is to be edited.
        needs: what the edit needs.
        options: how it is to be baked.

    Raises:
        InputError: a tensor is not found or has a type that cannot be written, or llama.cpp
            would not read the bias that the edit needs.
        SeaExportError: the numerical check of the fold failed.
    """
    parts = read_parts(gguf)
    files = BaseFiles(gguf.parent, [part.path.name for part in parts])
    stored = find_stored_projections(targets, base, needs_bias=needs.constant)
    tensors = find_tensors(base, stored, parts)
    new_biases: dict[str, str] = {}
    for tensor in tensors.values():
        output_type(tensor, options.gguf_type)  # raises for one that cannot be written
    for weight in (weight for one in stored.projections for weight in one.weights):
        if needs.constant and weight.bias is None:
            new_biases |= _new_bias(weight, tensors[weight.name], parts)
    stored = with_new_biases(stored, base) if new_biases else stored
    return GgufProjections(stored, parts, files, tensors, new_biases)


def find_tensors(base: Base, stored: StoredProjections, parts: Sequence[GgufPart]) -> dict[str, GgufTensor]:
    """The tensors that hold the parameters of output projections, by the names of the parameters in the model.

    Args:
        base: the base.
        stored: the output projections.
        parts: the files of the base.

    Raises:
        InputError: the files have no such tensor.
    """
    first = parts[0]
    find = tensor_namer(
        first.header.value("general.architecture"), first.path.name, len(decoder_layers(stored.model)[1])
    )
    known = {tensor.name: tensor for part in parts for tensor in part.header.tensors}
    tensors: dict[str, GgufTensor] = {}
    for weight in (weight for one in stored.projections for weight in one.weights):
        for parameter in filter(None, (weight.name, weight.bias)):
            name = find(parameter)
            if name is None or name not in known:
                raise InputError(
                    f"{parameter}: {base.name} holds it in no tensor of its own{f' ({name})' if name else ''}, and the "
                    "edit must be folded into one. Choose --format merged."
                )
            tensors[parameter] = known[name]
    return tensors


def estimated_bytes(parts: Sequence[GgufPart], options: ExportOptions, targets: int) -> int:
    """About how many bytes an export needs on the disk.

    Args:
        parts: the files of the base.
        options: how the edit is to be baked.
        targets: the number of edited targets.
    """
    size = sum(part.path.stat().st_size for part in parts)
    blocks = [one for part in parts for one in part.header.tensors if one.name.startswith("blk.") and one.shape[1:]]
    growth = [replace(one, type=asked_type(one, options.gguf_type)).nbytes - one.nbytes for one in blocks]
    return size + targets * max(0, 0, *growth)


def _new_bias(weight: ProjectionWeight, tensor: GgufTensor, parts: Sequence[GgufPart]) -> dict[str, str]:
    """The names in the model and in the file of a bias that is to be added beside a tensor."""
    architecture, taken = str(parts[0].header.value("general.architecture")), tensor.name.split(".")[-2]
    if weight.bias_name is None or taken not in TAKEN_BIASES.get(architecture, ()):
        raise NoPlaceForConstantError(
            tensor.name,
            f"the edit needs a bias beside it, which llama.cpp does not read for the architecture {architecture}",
            "--center linear, which needs none",
        )
    if len(parts) > 1:
        raise NoPlaceForConstantError(
            parts[0].path.name,
            "the edit needs new biases, and the parts of a model state how many tensors it has",
            "--center linear, or join the parts with llama.cpp's llama-gguf-split --merge",
        )
    return {weight.bias_name: f"{tensor.name.removesuffix('weight')}bias"}


def plan_gguf(edit: SpectralEdit, base: Base, located: GgufProjections, options: ExportOptions) -> GgufPlan:
    """What is changed in the files of the base.

    Args:
        edit: the edit.
        base: the base.
        located: what `locate_in_gguf` found for its targets.
        options: how it is to be baked.

    Raises:
        InputError: the edit has another hidden size than the base, or a tensor is not what transformers made of it.
    """
    edit.check_sizes(located.projections)
    edits: dict[str, GgufEdit] = {}
    additions: dict[str, Tensor] = {}
    for projection in located.projections:
        layers = edit.layers[projection.target]
        changed = changes_weights(layers)  # where it does not, encoding a weight again would only round it
        for weight in projection.weights:
            for parameter in filter(None, (weight.name if changed else None, weight.bias)):
                tensor = located.tensors[parameter]
                edits[tensor.name] = GgufEdit(layers, output_type(tensor, options.gguf_type))
            bias = fold_bias(None, layers, torch.float32) if weight.bias is None else None
            if bias is not None:
                assert weight.bias_name is not None
                additions[located.new_biases[weight.bias_name]] = bias
    check_values(base, located)
    first = located.parts[0].header
    targets, types = [str(target) for target in edit.targets], {one.type for one in edits.values()}
    entries = tuple(new_entries(first, base.name, targets, types))
    return GgufPlan(located, GgufChanges(edits, additions, entries))


def check_values(base: Base, located: GgufProjections) -> None:
    """Checks that transformers made the parameters of the tensors that are to be edited, and in the same order.

    Args:
        base: the base.
        located: the tensors.

    Raises:
        InputError: a parameter has other values than its tensor.
    """
    for projection in located.projections:
        for weight in projection.weights:
            for parameter in filter(None, (weight.name, weight.bias)):
                made = located.stored.parameters[parameter].read(base.checkpoint)
                if weight.transposed and parameter == weight.name:
                    made = made.mT
                tensor = located.tensors[parameter]
                if tuple(made.shape) != tensor.shape or not _is_made_of(made, tensor, located.parts):
                    raise InputError(
                        f"{tensor.name}: its values are not those of {parameter}, which transformers made of it. "
                        "Choose --format merged."
                    )


def _is_made_of(made: Tensor, tensor: GgufTensor, parts: Sequence[GgufPart]) -> bool:
    """Whether a parameter has the values of a tensor, but for rounding."""
    pieces = made if made.ndim > 2 else made[None]
    for piece, values in zip(pieces, read_tensor(parts, tensor), strict=True):
        check_finite(tensor, values)
        absolute = _ABSOLUTE * float(values.abs().max())
        if not torch.allclose(piece.float(), values, rtol=_RELATIVE, atol=absolute):
            return False
    return True
