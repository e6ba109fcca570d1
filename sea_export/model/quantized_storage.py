"""Which stored tensors hold the quantized weights of a base, and what the same checkpoint would be with plain ones.

Known are the block-scaled storages of `sea_export.model.block_scaled`, under the names that transformers reads:

- `fp8`: X in E4M3, and its factors as X_scale_inv; or, where X ends in `.weight`, as `.scale` or `.qscale_weight`;
- `mxfp4`: X as X_blocks (experts, outputs, blocks, 16) and X_scales. Transformers turns it into (experts, inputs,
  outputs).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING

import torch

from sea_export.errors import InputError
from sea_export.model.block_scaled import PACKED_BLOCK, grid_of, holds_factors
from sea_export.model.checkpoint import Checkpoint
from sea_export.model.quantization_methods import REQUANTIZABLE, requantizable_method
from sea_export.model.safetensors_header import StoredTensor
from sea_export.text import dtype_name

if TYPE_CHECKING:
    from sea_export.model.base import Base

__all__ = [
    "QuantizedWeight",
    "check_requantizable",
    "is_requantizable",
    "quantized_weights",
    "stored_quantized",
    "with_plain_weights",
]

_BLOCKS, _SCALES = "_blocks", "_scales"
_PACKED_BYTES = PACKED_BLOCK // 2


@dataclass(frozen=True)
class QuantizedWeight:
    """A weight, or a stack of them, that two stored tensors hold."""

    name: str
    """Its name in a checkpoint of plain weights."""
    values: str
    """The stored name of its numbers."""
    scales: str
    """The stored name of the factors of its blocks."""
    shape: tuple[int, ...]
    """Its shape in a checkpoint of plain weights."""
    transposed: bool
    """Whether its matrices are stored with the last two dimensions of `shape` exchanged."""
    storage: str
    """What the storage is called."""


def quantized_weights(base: Base) -> dict[str, QuantizedWeight]:
    """The weights that a base stores quantized, by their names in a checkpoint of plain weights.

    Args:
        base: the base.

    Raises:
        InputError: it is not quantized, or stored in a form that is not known.
    """
    method = requantizable_method(base.name, base.checkpoint.config)
    return stored_quantized(base.checkpoint, method)


def stored_quantized(checkpoint: Checkpoint, method: str) -> dict[str, QuantizedWeight]:
    """The weights that a checkpoint stores quantized, by their names in a checkpoint of plain weights.

    Args:
        checkpoint: the checkpoint.
        method: one of `REQUANTIZABLE`.
    """
    find = _in_fp8 if method == "fp8" else _in_mxfp4
    return {weight.name: weight for weight in find(checkpoint)}


def check_requantizable(weight: QuantizedWeight, checkpoint: Checkpoint) -> None:
    """Refuses a weight whose stored tensors are not as `sea_export.model.block_scaled` reads them.

    Args:
        weight: the weight.
        checkpoint: where it is stored.

    Raises:
        InputError: they have another dtype, or shapes that do not fit together.
    """
    if not is_requantizable(weight, checkpoint):
        scales = checkpoint.tensors[weight.scales]
        raise InputError(
            f"{weight.values}: its factors are stored as {weight.scales} in {dtype_name(scales.dtype)} of shape "
            f"{scales.shape}, which are no factors of equal blocks of {weight.shape}. Choose --dequantize."
        )


def is_requantizable(weight: QuantizedWeight, checkpoint: Checkpoint) -> bool:
    """Whether its stored tensors are as `sea_export.model.block_scaled` reads them: a grid of factors for each matrix.

    Args:
        weight: the weight.
        checkpoint: where it is stored.
    """
    values, scales = checkpoint.tensors[weight.values], checkpoint.tensors[weight.scales]
    below, beside = grid_of(scales.shape)
    rows, columns = weight.shape[-2:][:: -1 if weight.transposed else 1]
    if weight.transposed:
        fits = scales.shape == values.shape[:-1]
    else:
        fits = below > 0 and beside > 0 and rows % below == 0 and columns % beside == 0
    count = math.prod(weight.shape[:-2])
    return fits and holds_factors(scales.dtype) and math.prod(scales.shape) == count * below * beside


def with_plain_weights(checkpoint: Checkpoint, weights: Mapping[str, QuantizedWeight]) -> Checkpoint:
    """What the same checkpoint would be with plain weights: for names and shapes, nothing can be read from it.

    Args:
        checkpoint: the checkpoint.
        weights: what it stores quantized.
    """
    held = {name for weight in weights.values() for name in (weight.values, weight.scales)}
    tensors = {name: tensor for name, tensor in checkpoint.tensors.items() if name not in held}
    for weight in weights.values():
        tensors[weight.name] = replace(checkpoint.tensors[weight.values], name=weight.name, shape=weight.shape)
    return replace(checkpoint, tensors=MappingProxyType(tensors))


def _in_fp8(checkpoint: Checkpoint) -> Iterator[QuantizedWeight]:
    for name, tensor in checkpoint.tensors.items():
        if tensor.dtype != torch.float8_e4m3fn or len(tensor.shape) < 2:
            continue
        stem = name.removesuffix(".weight")
        others = (f"{stem}.scale", f"{stem}.qscale_weight") if stem != name else ()
        scales = next((other for other in (f"{name}_scale_inv", *others) if other in checkpoint.tensors), None)
        if scales is not None:
            yield QuantizedWeight(name, name, scales, tensor.shape, transposed=False, storage=REQUANTIZABLE["fp8"])


def _in_mxfp4(checkpoint: Checkpoint) -> Iterator[QuantizedWeight]:
    for name, tensor in checkpoint.tensors.items():
        stem = name.removesuffix(_BLOCKS)
        scales = checkpoint.tensors.get(f"{stem}{_SCALES}")
        if stem != name and scales is not None and _is_packed(tensor):
            experts, outputs, blocks, _ = tensor.shape
            shape = (experts, blocks * PACKED_BLOCK, outputs)
            yield QuantizedWeight(stem, name, scales.name, shape, transposed=True, storage=REQUANTIZABLE["mxfp4"])


def _is_packed(tensor: StoredTensor) -> bool:
    return tensor.dtype == torch.uint8 and len(tensor.shape) == 4 and tensor.shape[-1] == _PACKED_BYTES
