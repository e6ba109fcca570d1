"""The fold of weight changes into a stored weight, a few rows at a time. It is rounded as in `sea_export.edit.fold`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from sea_export.edit.fold import widened
from sea_export.edit.weight_change import WeightChange, WeightFactors

__all__ = ["fold_changes", "folded_roundings"]


def fold_changes(stored: Tensor, changes: Sequence[WeightChange], output_dim: int) -> Tensor:
    """A stored weight with changes folded in: D W + L R in float64, rounded once.

    Args:
        stored: (out, in) or (in, out), of any floating dtype.
        changes: the changes in the order in which they are applied.
        output_dim: the dimension of the outputs: -2 or -1.

    Returns:
        The changed weight, in the dtype and shape of the stored one.
    """
    folded = torch.empty_like(stored, memory_format=torch.contiguous_format)
    for rows, block, _ in _blocks(stored, changes, output_dim):
        folded[rows].copy_(block)
    return folded


def folded_roundings(stored: Tensor, changes: Sequence[WeightChange], output_dim: int) -> tuple[Tensor, Tensor]:
    """The lowest and the highest number that `fold_changes` may give on any processor.

    Args:
        stored: see `fold_changes`.
        changes: see `fold_changes`.
        output_dim: see `fold_changes`.

    Returns:
        Two tensors in the dtype and shape of the stored one.
    """
    lowest, highest = (torch.empty_like(stored, memory_format=torch.contiguous_format) for _ in range(2))
    for rows, block, error in _blocks(stored, changes, output_dim):
        lowest[rows].copy_(block - error)
        highest[rows].copy_(block + error)
    return lowest, highest


def _blocks(stored: Tensor, changes: Sequence[WeightChange], output_dim: int) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Blocks of rows of the changed weight in float64, and how far each number may be from it on another processor.

    Sums of k terms are off by at most k units in the last place of the sum of their magnitudes.
    """
    factors = WeightFactors.of(changes)
    scale, left, right = factors.scale[:, None], factors.left, factors.right
    if output_dim == -1:
        scale, left, right = scale.T, right.T, left.T
    unit = torch.finfo(torch.float64).eps * (right.shape[0] + 2 * len(changes) + 1)
    left_norms, right_norms = left.norm(dim=1, keepdim=True), right.norm(dim=0, keepdim=True)
    for rows, block in widened(stored, 1):
        own = scale if output_dim == -1 else scale[rows]
        error = unit * ((own * block).abs() + left_norms[rows] * right_norms)
        yield rows, block.mul_(own).addmm_(left[rows], right), error
