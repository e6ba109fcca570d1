"""The fold: the parameters of an output projection, with edits folded in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sea_export.edit.layer_edit import LayerEdit
from sea_export.edit.low_rank import low_rank_edit
from sea_export.model.architecture import OutputProjection

__all__ = ["fold_bias", "fold_parameters", "fold_tensor", "wider_dtype", "with_parameters"]


def fold_parameters(
    projection: OutputProjection, edits: Sequence[LayerEdit], parameters: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The parameters of an output projection with the edits folded in: W' = M' W and b' = M' b + (I - M') μ.

    Args:
        projection: which parameters to fold and how they are laid out.
        edits: the layer edits in the order of their application.
        parameters: by name, of any floating dtype. The arithmetic is one step wider (float32 for half precision,
            float64 for float32), and is rounded once.

    Returns:
        The folded parameters by name, with a new bias where an edit needs one.

    Raises:
        InputError: an edit is not linear.
    """
    folded: dict[str, Tensor] = {}
    for weight in projection.weights:
        stored = parameters[weight.name]
        folded[weight.name] = fold_tensor(stored, edits, weight.output_dim)
        bias = fold_bias(parameters[weight.bias] if weight.bias else None, edits, stored.dtype)
        if bias is not None:
            assert weight.bias_name is not None, f"{weight.name} has no bias that could hold a constant"
            folded[weight.bias_name] = bias
    return folded


@contextmanager
def with_parameters(model: nn.Module, tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """Replaces parameters of a model in memory by tensors, and puts the parameters back when the context ends.

    Args:
        model: the model.
        tensors: by the names of the parameters. One that the model does not have, such as a bias, is added for the
            time.
    """
    parameters = dict(model.named_parameters())
    with ExitStack() as restore:
        for name, tensor in tensors.items():
            module_name, _, leaf = name.rpartition(".")
            module = model.get_submodule(module_name)
            restore.callback(setattr, module, leaf, parameters.get(name))
            setattr(module, leaf, nn.Parameter(tensor, requires_grad=False))
        yield


def fold_tensor(stored: Tensor, edits: Sequence[LayerEdit], output_dim: int) -> Tensor:
    """A stored weight with the edits folded in: D (c W + L (R W)), computed a few rows at a time.

    Args:
        stored: (..., d, m) or (..., m, d), of any floating dtype. The leading dimensions are a stack of weights, such
            as those of experts.
        edits: the layer edits in the order of their application.
        output_dim: the dimension of the hidden size d, one of the last two.

    Returns:
        The folded weight, in the dtype and shape of the stored one.

    Raises:
        InputError: an edit is not linear.
    """
    for edit in edits:
        edit.require_foldable()
    wide = wider_dtype(stored.dtype)
    product = low_rank_edit(edits)
    factors = _Factors(
        scale=(product.identity * product.scale).to(wide),
        left=(product.scale[:, None] * product.left).to(wide),
        right=product.right.to(wide),
    )
    folded = torch.empty_like(stored, memory_format=torch.contiguous_format)
    fold = _fold_columns if output_dim % stored.ndim == stored.ndim - 2 else _fold_rows
    for matrix, destination in zip(
        stored.reshape(-1, *stored.shape[-2:]), folded.view(-1, *stored.shape[-2:]), strict=True
    ):
        fold(matrix, destination, factors)
    return folded


@dataclass(frozen=True)
class _Factors:
    """h ↦ scale ∘ h + left (right h), in the dtype of the arithmetic."""

    scale: Tensor
    """(d,)"""
    left: Tensor
    """(d, k)"""
    right: Tensor
    """(k, d)"""


def _fold_columns(matrix: Tensor, destination: Tensor, factors: _Factors) -> None:
    """Edits the columns of (d, m). The sum over all rows of their parts in the k directions is computed first."""
    directions = factors.left.new_zeros(factors.right.shape[0], matrix.shape[1])
    for rows, block in _widened(matrix, factors.left.dtype):
        directions.addmm_(factors.right[:, rows], block)
    for rows, block in _widened(matrix, factors.left.dtype):
        block.mul_(factors.scale[rows, None]).addmm_(factors.left[rows], directions)
        destination[rows].copy_(block)


def _fold_rows(matrix: Tensor, destination: Tensor, factors: _Factors) -> None:
    """Edits the rows of (m, d)."""
    for rows, block in _widened(matrix, factors.left.dtype):
        directions = block @ factors.right.T
        block.mul_(factors.scale).addmm_(directions, factors.left.T)
        destination[rows].copy_(block)


def _widened(matrix: Tensor, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
    """Blocks of rows in a wider dtype, one after the other. All use the same memory, because new memory costs time."""
    height = max(1, _FOLD_BLOCK // matrix.shape[1])
    buffer = torch.empty(min(height, matrix.shape[0]), matrix.shape[1], dtype=dtype)
    for start in range(0, matrix.shape[0], height):
        rows = slice(start, min(start + height, matrix.shape[0]))
        block = buffer[: rows.stop - start]
        yield rows, block.copy_(matrix[rows])


def fold_bias(stored: Tensor | None, edits: Sequence[LayerEdit], dtype: torch.dtype) -> Tensor | None:
    """A bias with the edits folded in.

    Args:
        stored: (d,) the stored bias, or None.
        edits: the layer edits in the order of their application.
        dtype: of the weight and the result.

    Returns:
        (d,) the folded bias, or None where there is still no constant.

    Raises:
        InputError: an edit is not linear.
    """
    bias = None if stored is None else stored.to(wider_dtype(dtype))
    for edit in edits:
        bias = edit.fold_bias(bias)
        bias = None if bias is None else bias.to(wider_dtype(dtype))
    return None if bias is None else bias.to(dtype)


# Elements of a weight that are widened at a time: 4 MB of float32, which stay in the cache of the processor.
_FOLD_BLOCK = 2**20


def wider_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which weights of a stored dtype are folded, before they are rounded to it once."""
    return torch.float64 if dtype in (torch.float32, torch.float64) else torch.float32
