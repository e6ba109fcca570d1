"""The fold: the parameters of an output projection, with edits folded in.

The arithmetic is float64 for every stored dtype, and its result is rounded once. The order of the terms of a sum
depends on the processor, and changes a result of float64 by some units in its last place. So the rounded number is the
same on every processor, unless the sum lies that near the middle between two numbers of the stored dtype.
`tensor_roundings` and `bias_roundings` give both of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from sea_export.edit.layer_edit import LayerEdit
from sea_export.edit.low_rank import low_rank_edit
from sea_export.model.architecture import OutputProjection

__all__ = [
    "RowReader",
    "bias_roundings",
    "changes_weights",
    "fold_bias",
    "fold_parameters",
    "fold_ranges",
    "fold_rows",
    "fold_tensor",
    "tensor_roundings",
    "widened",
    "with_parameters",
]

# Elements of a weight that are widened at a time: 4 MB of float64, which stay in the cache of the processor.
_FOLD_BLOCK = 2**19


class RowReader(Protocol):
    """A matrix that is read a few rows at a time: a tensor, or a weight that is dequantized on the way."""

    @property
    def shape(self) -> torch.Size:
        """(rows, columns)"""

    def __getitem__(self, rows: slice) -> Tensor:
        """(rows, columns) of any floating dtype."""


def fold_parameters(
    projection: OutputProjection, edits: Sequence[LayerEdit], parameters: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The parameters of an output projection with the edits folded in: W' = M' W and b' = M' b + (I - M') μ.

    Args:
        projection: which parameters to fold and how they are laid out.
        edits: the layer edits in the order of their application.
        parameters: by name, of any floating dtype.

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
    columns = _has_columns(stored, output_dim)
    folded = torch.empty_like(stored, memory_format=torch.contiguous_format)
    for matrix, destination in zip(_matrices(stored), _matrices(folded), strict=True):
        for rows, block in fold_rows(matrix, edits, columns=columns):
            destination[rows].copy_(block)
    return folded


def changes_weights(edits: Sequence[LayerEdit]) -> bool:
    """Whether the fold changes weights. That of edits by a constant alone changes biases only.

    Args:
        edits: the layer edits in the order of their application.

    Raises:
        InputError: an edit is not linear.
    """
    factors = _Factors.of(edits)
    return bool((factors.scale != 1).any()) or bool(factors.left.any() and factors.right.any())


def fold_rows(
    matrix: RowReader, edits: Sequence[LayerEdit], *, columns: bool, multiple: int = 1
) -> Iterator[tuple[slice, Tensor]]:
    """Blocks of rows of a matrix with the edits folded in, in float64, one after the other in the same memory.

    Args:
        matrix: (d, m) if its columns are edited, and (m, d) if its rows are.
        edits: the layer edits in the order of their application.
        columns: whether its columns are edited.
        multiple: each block, but perhaps the last, has a multiple of this number of rows.

    Raises:
        InputError: an edit is not linear.
    """
    factors = _Factors.of(edits)
    return factors.columns(matrix, multiple) if columns else factors.rows(matrix, multiple)


def fold_ranges(
    matrix: RowReader, edits: Sequence[LayerEdit], *, columns: bool, multiple: int = 1
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """What `fold_rows` gives, and how far each number may be from it on another processor, at most.

    Args:
        matrix: see `fold_rows`.
        edits: see `fold_rows`.
        columns: see `fold_rows`.
        multiple: see `fold_rows`.

    Raises:
        InputError: an edit is not linear.
    """
    error = _Factors.of(edits).error
    squares = [block.square_().sum(dim=0 if columns else 1, keepdim=True) for _, block in widened(matrix, multiple)]
    sizes = (torch.stack(squares).sum(dim=0) if columns else torch.cat(squares)).sqrt()
    for rows, block in fold_rows(matrix, edits, columns=columns, multiple=multiple):
        yield rows, block, error[rows, None] * sizes if columns else sizes[rows] * error


def tensor_roundings(stored: Tensor, edits: Sequence[LayerEdit], output_dim: int) -> tuple[Tensor, Tensor]:
    """The lowest and the highest number that `fold_tensor` may give on any processor. They are the same nearly
    everywhere.

    Args:
        stored: see `fold_tensor`.
        edits: see `fold_tensor`.
        output_dim: see `fold_tensor`.

    Returns:
        Two tensors in the dtype and shape of the stored one.

    Raises:
        InputError: an edit is not linear.
    """
    columns = _has_columns(stored, output_dim)
    lowest, highest = (torch.empty_like(stored, memory_format=torch.contiguous_format) for _ in range(2))
    for matrix, low, high in zip(_matrices(stored), _matrices(lowest), _matrices(highest), strict=True):
        for rows, block, error in fold_ranges(matrix, edits, columns=columns):
            low[rows].copy_(block - error)
            high[rows].copy_(block + error)
    return lowest, highest


def fold_bias(stored: Tensor | None, edits: Sequence[LayerEdit], dtype: torch.dtype) -> Tensor | None:
    """A bias with the edits folded in.

    Args:
        stored: (..., d) the stored bias, or that of each expert; None if there is none.
        edits: the layer edits in the order of their application.
        dtype: of the weight and the result.

    Returns:
        (..., d) the folded bias, or None where there is still no constant.

    Raises:
        InputError: an edit is not linear.
    """
    factors = _Factors.of(edits)
    if stored is None and not any(edit.needs_bias for edit in edits):
        return None
    folded = factors.bias(stored).to(dtype)
    return folded if stored is None else folded.to(stored.device)


def bias_roundings(stored: Tensor, edits: Sequence[LayerEdit]) -> tuple[Tensor, Tensor]:
    """The lowest and the highest number that `fold_bias` may give for a stored bias on any processor.

    Args:
        stored: (..., d) of any floating dtype: one bias, or one of each expert.
        edits: see `fold_bias`.

    Returns:
        Two tensors (..., d) in the dtype of the stored one.

    Raises:
        InputError: an edit is not linear.
    """
    factors = _Factors.of(edits)
    error = factors.error * (stored.double().norm(dim=-1, keepdim=True) + factors.shift.norm())
    folded = factors.bias(stored)
    return (folded - error).to(stored.dtype), (folded + error).to(stored.dtype)


@dataclass(frozen=True)
class _Factors:
    """h ↦ scale ∘ h + left (right h) + shift, in float64."""

    scale: Tensor
    """(d,)"""
    left: Tensor
    """(d, k)"""
    right: Tensor
    """(k, d)"""
    shift: Tensor
    """(d,) for biases only"""
    error: Tensor
    """(d,) How far sums in float64 are from exact ones at most, for each feature of an output of norm 1."""

    @classmethod
    def of(cls, edits: Sequence[LayerEdit]) -> _Factors:
        """Those of the product of linear edits."""
        for edit in edits:
            edit.require_foldable()
        product = low_rank_edit(edits)
        scale, left = product.identity * product.scale, product.scale[:, None] * product.left
        terms = len(edits) * (sum(left.shape) + 1)
        sizes = scale.abs() + left.norm(dim=1) * product.right.norm()
        error = torch.finfo(torch.float64).eps * terms * sizes
        return cls(scale, left, product.right, product.shift, error)

    def bias(self, stored: Tensor | None) -> Tensor:
        """(..., d) the folded bias. None is a bias of zeros."""
        if stored is None:
            return self.shift
        bias = stored.double().cpu()
        return self.scale * bias + (bias @ self.right.T) @ self.left.T + self.shift

    def columns(self, matrix: RowReader, multiple: int) -> Iterator[tuple[slice, Tensor]]:
        """For (d, m). The sum over all rows of their parts in the k directions is computed first."""
        directions = self.left.new_zeros(self.right.shape[0], matrix.shape[1])
        for rows, block in widened(matrix, multiple):
            directions.addmm_(self.right[:, rows], block)
        for rows, block in widened(matrix, multiple):
            yield rows, block.mul_(self.scale[rows, None]).addmm_(self.left[rows], directions)

    def rows(self, matrix: RowReader, multiple: int) -> Iterator[tuple[slice, Tensor]]:
        """For (m, d)."""
        for rows, block in widened(matrix, multiple):
            directions = block @ self.right.T
            yield rows, block.mul_(self.scale).addmm_(directions, self.left.T)


def _matrices(tensor: Tensor) -> Tensor:
    """(count, rows, columns) the weights of a stack."""
    return tensor.reshape(-1, *tensor.shape[-2:])


def _has_columns(stored: Tensor, output_dim: int) -> bool:
    """Whether a weight is stored as (..., d, m), and not as (..., m, d)."""
    return output_dim % stored.ndim == stored.ndim - 2


def widened(matrix: RowReader, multiple: int) -> Iterator[tuple[slice, Tensor]]:
    """Blocks of rows in float64, one after the other. All use the same memory, because new memory costs time.

    Args:
        matrix: (rows, columns).
        multiple: each block, but perhaps the last, has a multiple of this number of rows.

    Yields:
        the place of the rows in the matrix, and the rows.
    """
    count, width = matrix.shape
    height = multiple * max(1, _FOLD_BLOCK // width // multiple)
    buffer = torch.empty(min(height, count), width, dtype=torch.float64)
    for start in range(0, count, height):
        rows = slice(start, min(start + height, count))
        block = buffer[: rows.stop - start]
        yield rows, block.copy_(matrix[rows])
