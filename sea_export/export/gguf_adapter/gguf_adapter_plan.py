"""The plan of a GGUF adapter: its factors and its constants, determined before anything is written."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sea_export.edit.low_rank import LowRankEdit, low_rank_edit
from sea_export.edit.spectral_edit import SpectralEdit
from sea_export.errors import InputError, SeaExportError
from sea_export.export.formats import EditNeeds
from sea_export.export.gguf_adapter.architectures import llama_cpp_architecture
from sea_export.export.gguf_adapter.constant_check import check_constants
from sea_export.export.gguf_adapter.gguf_adapter_limits import NO_ROW_SCALES
from sea_export.export.gguf_adapter.llama_cpp_files import (
    CONTROL_VECTOR,
    LORA,
    AdapterFile,
    control_vector_file,
    lora_file,
)
from sea_export.export.gguf_adapter.low_rank_change import is_scaled, low_rank_change, padded
from sea_export.export.gguf_file.gguf_plan import GgufProjections, check_values, find_tensors
from sea_export.export.gguf_file.tensor_names import tensor_namer
from sea_export.export.modelfile import modelfile, sampling_of_config, sampling_of_gguf
from sea_export.export.stored_projections import StoredProjections, find_stored_projections
from sea_export.model.architecture import OutputProjection, ProjectionWeight, decoder_layers
from sea_export.model.base import Base
from sea_export.model.base_files import BaseFiles
from sea_export.model.gguf_header import GgufEntry, number_entry, text_entry
from sea_export.model.gguf_parts import GgufPart, read_parts
from sea_export.model.gguf_values import read_tensor
from sea_export.model.targets import Target

__all__ = ["AdaptedProjections", "GgufAdapterPlan", "locate_for_llama_cpp", "plan_gguf_adapter"]


@dataclass(frozen=True)
class AdaptedProjections:
    """The output projections of targets, and what llama.cpp calls their weights."""

    architecture: str
    """What llama.cpp calls the architecture."""
    stored: StoredProjections
    """Where the base has them, or what it was converted to."""
    names: dict[str, str]
    """Name of a weight in the model -> the name of its tensor in llama.cpp."""
    gguf: GgufProjections | None
    """Where the GGUF file of the base has them; None for a base in another form."""

    @property
    def projections(self) -> tuple[OutputProjection, ...]:
        """The output projections of the targets."""
        return self.stored.projections

    @property
    def parts(self) -> tuple[GgufPart, ...]:
        """The GGUF files of the base; none for a base in another form."""
        return () if self.gguf is None else self.gguf.parts


@dataclass(frozen=True)
class GgufAdapterPlan:
    """Everything that an export consists of."""

    located: AdaptedProjections
    files: tuple[AdapterFile, ...]
    """The LoRA, the control vector, or both."""
    rank: int
    """That of all factors; 0 if there are none."""
    base_file: str
    """The name of the GGUF file of the base, or the one that it should get when it is converted."""
    modelfile: str | None
    """The Modelfile for Ollama; None if it cannot name all of the edit."""

    def file(self, name: str) -> AdapterFile | None:
        """The file of a name; None if there is none.

        Args:
            name: `LORA` or `CONTROL_VECTOR`.
        """
        return next((file for file in self.files if file.name == name), None)

    def remarks(self) -> list[str]:
        """What the user should know before anything is written."""
        lora, vector, lines = self.file(LORA), self.file(CONTROL_VECTOR), []
        if lora is not None:
            lines.append(
                f"LoRA for llama.cpp: rank {self.rank}, {len(lora.tensors) // 2} weights, {lora.size / 1e6:.3g} MB."
            )
        if vector is not None:
            lines.append(
                f"Control vector for llama.cpp: constants in {len(vector.tensors)} layers. No Modelfile is written, "
                "because Ollama knows no control vectors."
            )
        if not self.located.parts:
            lines.append(
                f"llama.cpp puts it on {self.base_file}, which its convert_hf_to_gguf.py makes of the base. It was "
                "made from the weights as they are: on a quantized file it is as near as that file is to them."
            )
        return lines

    def details(self) -> dict[str, Any]:
        """What the manifest says of the export."""
        return {
            "architecture": self.located.architecture,
            "base_file": self.base_file,
            "converted": not self.located.parts,
            "rank": self.rank,
            "files": [file.name for file in self.files],
            "modelfile": self.modelfile is not None,
        }


def locate_for_llama_cpp(base: Base, targets: Iterable[Target], needs: EditNeeds) -> AdaptedProjections:
    """Finds what llama.cpp calls the weights of targets, and checks that it can hold an edit of them.

    Args:
        base: the base.
        targets: what is to be edited.
        needs: what the edit needs.

    Raises:
        InputError: a target is not found, llama.cpp has no tensor for one of its weights, or there is no place for the
            constant of the edit.
        SeaExportError: the numerical check of the fold failed.
    """
    if needs.row_scales:
        raise InputError(NO_ROW_SCALES)
    if base.is_quantized:
        raise InputError(
            f"{base.name}: its weights are quantized, and a LoRA for llama.cpp is made from plain ones. Give its .gguf "
            "file, the unquantized model, or --dequantize."
        )
    parts = () if base.gguf is None else read_parts(base.gguf)
    architecture = llama_cpp_architecture(base, parts)
    stored = find_stored_projections(targets, base, needs_bias=False)
    find = tensor_namer(architecture, base.name, len(decoder_layers(stored.model)[1]))
    names = {}
    for weight in (weight for one in stored.projections for weight in one.weights):
        name = find(weight.name)
        if name is None:
            raise InputError(
                f"{weight.name}: llama.cpp has no tensor of its own for it ({architecture}), which a LoRA could adapt. "
                "Choose --format merged."
            )
        names[weight.name] = name
    gguf = _in_gguf(base, stored, parts) if parts else None
    for projection in stored.projections:
        _check_expert_biases(projection)
    biased = [one for one in stored.projections if any(weight.bias is not None for weight in one.weights)]
    check_constants(stored.model, stored.projections if needs.constant else biased)
    return AdaptedProjections(architecture, stored, names, gguf)


def _in_gguf(base: Base, stored: StoredProjections, parts: tuple[GgufPart, ...]) -> GgufProjections:
    files = BaseFiles(parts[0].path.parent, [part.path.name for part in parts])
    tensors = find_tensors(base, stored, parts)
    known = {tensor.name for part in parts for tensor in part.header.tensors}
    for tensor in tensors.values():
        scale = f"{tensor.name.removesuffix('.weight')}.scale"
        if scale in known:
            raise InputError(
                f"{scale}: llama.cpp multiplies by it after it has applied a LoRA, so that a LoRA cannot be exact. "
                "Choose --format merged."
            )
    return GgufProjections(stored, parts, files, tensors, {})


def _check_expert_biases(projection: OutputProjection) -> None:
    """Raises InputError for experts with biases. A router weighs them, so that an edit makes no constant of them."""
    for weight in projection.weights:
        if weight.bias is not None and (weight.experts or len(projection.weights) > 1):
            raise InputError(
                f"{weight.bias}: it is the bias of experts, whose edit depends on how a router weighs them, and no "
                "control vector can hold that. Choose --format merged or custom-code."
            )


def plan_gguf_adapter(edit: SpectralEdit, base: Base, located: AdaptedProjections) -> GgufAdapterPlan:
    """Computes the factors and the constants of an edit.

    Args:
        edit: the edit.
        base: the base.
        located: what `locate_for_llama_cpp` found for the edit's targets.

    Raises:
        InputError: the edit has another hidden size than the base or scales features, or a tensor is not what
            transformers made of it.
        SeaExportError: a value is not finite, or the edit changes nothing.
    """
    edit.check_sizes(located.projections)
    if located.gguf is not None:
        check_values(base, located.gguf)
    products = {target: low_rank_edit(layers) for target, layers in edit.layers.items()}
    if any(is_scaled(product) for product in products.values()):
        raise InputError(NO_ROW_SCALES)
    factors: dict[str, tuple[Tensor, Tensor]] = {}
    directions: dict[int, Tensor] = {}
    for projection in located.projections:
        product, layer = products[projection.target], projection.target.layer
        constant = _constant(product, projection, base, located)
        if constant.any():
            directions[layer] = directions.get(layer, torch.zeros_like(constant)) + constant
        if product.left.any():
            for weight in projection.weights:
                factors[located.names[weight.name]] = _factors(product, weight, base, located)
    if not factors and not directions:
        raise SeaExportError(
            f"{base.name}: the edit changes nothing in it. Fit a stronger edit, for example with a higher "
            "--explained-variance."
        )
    rank = max((a.shape[-2] for a, _ in factors.values()), default=0)
    origin = tuple(_origin(base, located.parts))
    files = []
    if factors:
        files.append(lora_file(located.architecture, origin, rank, dict(_named(factors, rank))))
    if directions:
        rounded = {layer: one.float() for layer, one in sorted(directions.items())}
        files.append(control_vector_file(located.architecture, origin, rounded))
    for name, tensor in (item for file in files for item in file.tensors.items()):
        if not tensor.isfinite().all():
            raise SeaExportError(
                f"{name}: this tensor has values that are not finite in float32. Lower --strength, or choose another "
                "--normalization."
            )
    base_file = located.parts[0].path.name if located.parts else f"{base.name.rpartition('/')[2]}.gguf"
    sampling = sampling_of_gguf(located.parts[0].header) if located.parts else sampling_of_config(base.checkpoint)
    single = not directions and len(located.parts) < 2
    return GgufAdapterPlan(
        located, tuple(files), rank, base_file, modelfile(base_file, sampling, adapter=LORA) if single else None
    )


def _constant(product: LowRankEdit, projection: OutputProjection, base: Base, located: AdaptedProjections) -> Tensor:
    """(d,) what has to be added to the edited output besides what the LoRA adds, in float64: t + L (R b)."""
    (weight, *others) = projection.weights
    if others or weight.bias is None:
        return product.shift
    if located.gguf is None:
        bias = located.stored.parameters[weight.bias].read(base.checkpoint)
    else:
        (bias,) = read_tensor(located.parts, located.gguf.tensors[weight.bias])
    return product.shift + product.left @ (product.right @ bias.double())


def _factors(
    product: LowRankEdit, weight: ProjectionWeight, base: Base, located: AdaptedProjections
) -> tuple[Tensor, Tensor]:
    """The factors A (..., r, m) and B (..., d, r) of one weight, stacked for stacked experts, in float32."""
    pairs = [low_rank_change(product, matrix) for matrix in _matrices(weight, base, located)]
    a, b = torch.stack([a for _, a in pairs]).float(), torch.stack([b for b, _ in pairs]).float()
    return (a, b) if weight.experts else (a[0], b[0])


def _matrices(weight: ProjectionWeight, base: Base, located: AdaptedProjections) -> Iterator[Tensor]:
    """The matrices (d, m) of a weight: one, or that of each expert."""
    if located.gguf is not None:
        yield from read_tensor(located.parts, located.gguf.tensors[weight.name])
        return
    parameter = located.stored.parameters[weight.name].read(base.checkpoint)
    if weight.experts and parameter.ndim < 3:
        raise InputError(
            f"{weight.name}: it holds all experts in one matrix, which llama.cpp has not. Choose --format merged or "
            "custom-code."
        )
    for matrix in parameter if parameter.ndim > 2 else parameter[None]:
        yield matrix.mT if weight.transposed else matrix


def _named(factors: dict[str, tuple[Tensor, Tensor]], rank: int) -> Iterator[tuple[str, Tensor]]:
    for name, (a, b) in factors.items():
        a, b = padded(a, b, rank)
        yield f"{name}.lora_a", a
        yield f"{name}.lora_b", b


def _origin(base: Base, parts: tuple[GgufPart, ...]) -> Iterator[GgufEntry]:
    """The entries that name the base."""
    title = parts[0].header.value("general.name") if parts else None
    yield number_entry("general.base_model.count", 1)
    yield text_entry("general.base_model.0.name", title if isinstance(title, str) and title else base.name)
    if base.revision is not None:
        yield text_entry("general.base_model.0.repo_url", f"https://huggingface.co/{base.name}")
