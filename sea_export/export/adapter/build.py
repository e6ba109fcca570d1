"""How an edit becomes the tensors and the config of a PEFT adapter.

With W (d, m) the weight of an output projection and W' = D (c + L R) W the edited one (`sea_export.edit.low_rank`):

- LoRA is W + B A. For D = I and c = 1 the change L R W has the rank of the edit, so B A = L R W is exact.
- DoRA is diag(m / ‖W + B A‖) (W + B A), with the norms of rows. With m = D ‖W + B A‖ it is D (W + L R W), so every row
  scale, also c, is exact too (Liu et al., "DoRA: Weight-Decomposed Low-Rank Adaptation", arXiv 2402.09353).
- c = 0 (`projections="positive"` at strength 1) leaves nothing of W, and no adapter of low rank can remove W.

With a rank cap R the adapter is plain LoRA, because programs that cap the rank have no DoRA. Then B A is the best
approximation of rank R to the whole change W' - W, row scales included, in the Frobenius norm (Eckart and Young).

The constants t = M' b + shift - b, of biases b and of `center="affine"`, go into the bias that PEFT's `lora_bias` adds
to B. With DoRA this bias would be part of the norms at run time, but not in a merge. So for DoRA the biases of the base
are replaced (PEFT's `bias="lora_only"`). Where the base has none, a scaled edit with a constant is refused.

Stacked weights of experts become PEFT's `target_parameters` (`sea_export.export.adapter.parameter_lora`), which have
neither DoRA nor biases. In models with such experts the other weights of MLPs become `target_parameters` too, because
PEFT treats weights of some names as experts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sea_export.edit.factors import best_factors
from sea_export.edit.low_rank import LowRankEdit, low_rank_edit
from sea_export.edit.spectral_edit import SpectralEdit
from sea_export.errors import InputError, SeaExportError
from sea_export.export.adapter.adapter_limits import NO_EXACT_ADAPTER
from sea_export.export.adapter.parameter_lora import experts_of, parameter_factors, with_rank
from sea_export.model.architecture import OutputProjection, ProjectionWeight
from sea_export.model.constant_place import NoPlaceForConstantError

__all__ = [
    "PREFIX",
    "AdaptedModule",
    "Adapter",
    "EditedWeight",
    "build_adapter",
    "check_parameters",
    "edited_weights",
    "no_place_for_constant",
    "read_weight",
]

PREFIX = "base_model.model."
"""The prefix that PEFT puts before the names of modules."""

_FACTORS = ("lora_A.weight", "lora_B.weight")

# A row of W + B A is zero, apart from float32 rounding, if its norm is below this share of the norms of its terms.
_ROUNDING = 1e-6


@dataclass(frozen=True)
class EditedWeight:
    """One weight that gives an edited output, and its edit."""

    weight: ProjectionWeight
    edit: LowRankEdit
    bias: Tensor | None
    """(d,) the edited bias b', where the base has one."""
    constant: Tensor | None
    """(d,) b' - b; None if it is zero."""
    is_parameter: bool
    """Whether PEFT has to adapt the parameter (`target_parameters`), and not the linear map."""

    @property
    def module(self) -> str:
        """The name in the model of the linear map, or of the module that holds the experts."""
        return self.weight.module

    @property
    def is_scaled(self) -> bool:
        """Whether plain LoRA would need the full rank."""
        return self.edit.identity != 1 or bool((self.edit.scale != 1).any())

    @property
    def changes_anything(self) -> bool:
        """Whether the edit is not the identity."""
        return self.is_scaled or self.constant is not None or bool((self.edit.left != 0).any())

    def fold(self, weight: Tensor) -> Tensor:
        """The edited weight W' (..., d, m) of a weight W (..., d, m), both float64."""
        edit = self.edit
        return edit.scale[:, None] * (edit.identity * weight + edit.left @ (edit.right @ weight))


@dataclass(frozen=True)
class AdaptedModule:
    """What the adapter does to one linear map."""

    module: str
    """Its name in the model."""
    exact_rank: int
    """The rank that would be exact."""
    rank: int
    """The rank that it has."""
    relative_error: float
    """‖W + B A - W'‖ / ‖W' - W‖, Frobenius norms: what the rank cap costs."""
    elements: int
    """The number of elements of W."""
    experts: int = 1
    """The number of experts whose weights are stacked in W. Each has its own rank."""


@dataclass(frozen=True)
class Adapter:
    """A PEFT adapter."""

    config: Mapping[str, Any]
    """The contents of `adapter_config.json`."""
    tensors: Mapping[str, Tensor]
    """The contents of `adapter_model.safetensors`, float32."""
    modules: tuple[AdaptedModule, ...]

    @property
    def exact(self) -> bool:
        """Whether no rank cap has cut anything off."""
        return all(module.relative_error == 0 for module in self.modules)

    @property
    def size(self) -> int:
        """Bytes of its tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())


def build_adapter(
    edit: SpectralEdit,
    projections: Sequence[OutputProjection],
    read: Callable[[str], Tensor],
    *,
    base: str,
    revision: str | None = None,
    rank: int | None = None,
    pad: bool = True,
) -> Adapter:
    """Makes the adapter that computes the edit on its base.

    Args:
        edit: a linear edit.
        projections: the output projections of its targets.
        read: reads a parameter of the base by its name in the model, in any floating dtype. One weight is read at a
            time.
        base: the name by which `from_pretrained` loads the base: a Hub id or an absolute path.
        revision: the base's revision on the Hub.
        rank: the largest rank allowed; None for an exact adapter.
        pad: whether all modules get the same rank, with zeros. Some programs (vLLM, llama.cpp's converter) read one
            rank and one alpha for all of them.

    Raises:
        InputError: the edit is not linear, has another hidden size than the base, or no adapter can hold it exactly.
        SeaExportError: a value of the adapter is not finite, or the adapter would change nothing.
    """
    adapted = edited_weights(edit, projections, read)
    scaled = any(part.is_scaled for part in adapted) and rank is None
    constant = any(part.constant is not None for part in adapted)
    if rank is None:
        _check_exact(adapted, scaled)
    check_parameters(projections, scaled=scaled, constant=constant)
    if not scaled:
        adapted = [part for part in adapted if part.changes_anything]
    if not adapted:
        raise SeaExportError(
            f"{base}: the edit changes no weight of it. Fit a stronger edit, for example with a higher "
            "--explained-variance."
        )

    if scaled:
        parts = [_dora(part, read, with_bias=constant) for part in adapted]
    else:
        parts = [
            _parameter_lora(part, read, rank) if part.is_parameter else _lora(part, read, rank, with_bias=constant)
            for part in adapted
        ]
    modules = tuple(module for module, _ in parts)
    largest = max(module.rank for module in modules)
    own_ranks = {} if pad else {module.module: module.rank for module in modules if module.rank != largest}
    tensors = {
        f"{PREFIX}{module.module}.{name}": (
            with_rank(name, tensor, largest, module.experts) if pad and name in _FACTORS else tensor
        )
        .float()
        .contiguous()
        for module, values in parts
        for name, tensor in values.items()
    }
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise SeaExportError(
                f"{name}: this tensor of the adapter has values that are not finite in float32. Lower --strength, or "
                "choose another --normalization."
            )
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "revision": revision,
        "inference_mode": True,
        "target_modules": sorted(part.module for part in adapted if not part.is_parameter),
        "r": largest,
        "rank_pattern": own_ranks,
        "lora_alpha": largest,
        "alpha_pattern": own_ranks,
        "lora_dropout": 0.0,
        "fan_in_fan_out": not adapted[0].is_parameter and adapted[0].weight.transposed,
        "use_dora": scaled,
        "use_rslora": False,
        "bias": "lora_only" if scaled and constant else "none",
        "lora_bias": constant and not scaled,
    }
    if any(part.is_parameter for part in adapted):
        config["target_parameters"] = sorted(part.weight.name for part in adapted if part.is_parameter)
    return Adapter(config, tensors, modules)


def edited_weights(
    edit: SpectralEdit, projections: Sequence[OutputProjection], read: Callable[[str], Tensor]
) -> list[EditedWeight]:
    """The weights that give the outputs of an edit's targets, each with its edit.

    Arguments and errors are those of `build_adapter`.
    """
    edit.check_sizes(projections)
    return [_edited(weight, projection, edit, read) for projection in projections for weight in projection.weights]


def _edited(
    weight: ProjectionWeight, projection: OutputProjection, edit: SpectralEdit, read: Callable[[str], Tensor]
) -> EditedWeight:
    layers = edit.layers[projection.target]
    for layer in layers:
        if layer.why_unfoldable:
            raise InputError(layer.why_unfoldable)
    product = low_rank_edit(layers)
    if len(projection.weights) > 1 and product.shift.any():
        raise NoPlaceForConstantError(
            projection.module_name,
            f"it sums {len(projection.weights)} weighted experts, which cannot hold the constant of an affine edit",
        )
    bias = None
    constant = product.shift
    if weight.bias is not None:
        stored = read(weight.bias).double().cpu()
        bias = product.apply(stored)
        constant = bias - stored
    return EditedWeight(
        weight, product, bias, constant if constant.any() else None, weight.experts or projection.in_mixture
    )


def _check_exact(adapted: Sequence[EditedWeight], scaled: bool) -> None:
    for part in adapted:
        if part.edit.identity == 0:
            raise InputError(NO_EXACT_ADAPTER)
        if scaled and part.constant is not None and part.bias is None:
            raise no_place_for_constant(part.weight)


def check_parameters(projections: Sequence[OutputProjection], *, scaled: bool, constant: bool) -> None:
    """Raises InputError if the adapter of a model with experts would need what PEFT cannot store for experts.

    Args:
        projections: the output projections that are adapted.
        scaled: whether the adapter scales rows.
        constant: whether the adapter adds constants.
    """
    if not scaled and not constant:
        return
    for projection in projections:
        for weight in projection.weights:
            if weight.experts or projection.in_mixture:
                what = "row scales" if scaled else "the constants of biases"
                way_out = "--normalization none, " if scaled else ""
                raise InputError(
                    f"{weight.name}: it belongs to a model with experts, for which PEFT cannot store {what}. Choose "
                    f"{way_out}--format merged or custom-code."
                )


def no_place_for_constant(weight: ProjectionWeight) -> NoPlaceForConstantError:
    """Why an adapter cannot hold a scaled edit with a constant where the base has no bias.

    Args:
        weight: a weight without a bias.
    """
    return NoPlaceForConstantError(
        weight.name.removesuffix(".weight"),
        "it has no bias, and PEFT cannot store both the constant of an affine edit and the row scales of a normalized "
        "one",
        "--center linear, --normalization none, or another --format",
    )


def _lora(
    part: EditedWeight, read: Callable[[str], Tensor], rank: int | None, *, with_bias: bool
) -> tuple[AdaptedModule, dict[str, Tensor]]:
    weight = read_weight(part.weight, read)
    if part.is_scaled:
        left = torch.eye(weight.shape[0], dtype=torch.float64)
        right = part.fold(weight) - weight
    else:
        left, right = part.edit.left, part.edit.right @ weight
    factors = best_factors(left, right, rank)
    tensors = {"lora_A.weight": factors.a, "lora_B.weight": factors.b}
    if with_bias:
        tensors["lora_B.bias"] = torch.zeros(weight.shape[0]) if part.constant is None else part.constant
    module = AdaptedModule(part.module, factors.exact_rank, factors.b.shape[1], factors.relative_error, weight.numel())
    return module, tensors


def _dora(
    part: EditedWeight, read: Callable[[str], Tensor], *, with_bias: bool
) -> tuple[AdaptedModule, dict[str, Tensor]]:
    weight = read_weight(part.weight, read)
    factors = best_factors(part.edit.left, part.edit.right @ weight, None)
    # The norms are those of the rounded factors, because they are what PEFT divides by.
    b, a = factors.b.float().double(), factors.a.float().double()
    change = b @ a
    norms = (weight + change).norm(dim=1)
    vanishing = norms <= _ROUNDING * (weight.norm(dim=1) + change.norm(dim=1))
    if vanishing.any():
        # The norm of such a row cannot be divided by. It gets another norm, and magnitude 0, which makes the row zero.
        b[vanishing, 0] += 1
        norms = torch.where(vanishing, 0, norms)
    tensors = {
        "lora_A.weight": a,
        "lora_B.weight": b,
        # PEFT saves it without ".weight" and reads both names. Transformers 5 finds it only with ".weight".
        "lora_magnitude_vector.weight": part.edit.scale * norms,
    }
    if with_bias and part.bias is not None:
        tensors["base_layer.bias"] = part.bias
    module = AdaptedModule(part.module, factors.exact_rank, b.shape[1], 0.0, weight.numel())
    return module, tensors


def _parameter_lora(
    part: EditedWeight, read: Callable[[str], Tensor], rank: int | None
) -> tuple[AdaptedModule, dict[str, Tensor]]:
    """The LoRA of a parameter: the best factors for each of its experts, one after the other in float64."""
    parameter = read(part.weight.name).cpu()
    if part.weight.experts and parameter.ndim < 3:
        raise InputError(
            f"{part.weight.name}: it holds all experts in one matrix, which PEFT cannot adapt. Choose --format merged "
            "or custom-code."
        )
    factors, energy, lost = [], 0.0, 0.0
    for matrix in experts_of(part.weight, parameter):
        weight = matrix.double()
        left, right = part.edit.left, part.edit.right @ weight
        if part.is_scaled:
            left, right = torch.eye(len(weight), dtype=torch.float64), part.fold(weight) - weight
        factors.append(best_factors(left, right, rank))
        kept = float(factors[-1].a.square().sum())
        energy += kept / (1 - factors[-1].relative_error ** 2)
        lost += kept / (1 - factors[-1].relative_error ** 2) - kept
    a, b = parameter_factors(part.weight, [each.b for each in factors], [each.a for each in factors])
    module = AdaptedModule(
        module=part.module,
        exact_rank=max(each.exact_rank for each in factors),
        rank=max(each.b.shape[1] for each in factors),
        relative_error=(lost / energy) ** 0.5 if rank is not None and energy else 0.0,
        elements=parameter.numel(),
        experts=len(factors),
    )
    return module, {"lora_A.weight": a, "lora_B.weight": b}


def read_weight(weight: ProjectionWeight, read: Callable[[str], Tensor]) -> Tensor:
    """A weight W (d, m), or (experts, d, m) for experts, in float64 on the CPU.

    Args:
        weight: which weight.
        read: see `build_adapter`.
    """
    parameter = read(weight.name).double().cpu()
    return experts_of(weight, parameter) if weight.experts else parameter.movedim(weight.output_dim, 0)
