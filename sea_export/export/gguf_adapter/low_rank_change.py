"""The change that an edit makes to a weight, as two factors: W' - W = B A.

With W' = W + L (R W) for L (d, k) and R (k, d) of the edit (`sea_export.edit.low_rank`), B = L has the numbers of the
edit, and A = R W is computed from the weight. Row scales and all that leaves less than the identity of W make a change
of full rank, which no factors hold in less room than the weight itself.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sea_export.edit.low_rank import LowRankEdit

__all__ = ["is_scaled", "low_rank_change", "padded"]


def is_scaled(edit: LowRankEdit) -> bool:
    """Whether an edit changes a weight by more than a matrix of low rank.

    Args:
        edit: the edit.
    """
    return edit.identity != 1 or bool((edit.scale != 1).any())


def low_rank_change(edit: LowRankEdit, weight: Tensor) -> tuple[Tensor, Tensor]:
    """The factors B (d, r) and A (r, m), in float64.

    Args:
        edit: an edit that is not scaled.
        weight: (d, m) W, of any floating dtype.
    """
    left, right = edit.left, edit.right @ weight.double()
    if left.shape[1] <= min(weight.shape):
        return left, right
    change = left @ right  # the factors would be larger than what they make
    identity = torch.eye(min(weight.shape), dtype=change.dtype)
    return (identity, change) if weight.shape[0] <= weight.shape[1] else (change, identity)


def padded(a: Tensor, b: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Factors A and B, filled with zeros up to a rank.

    Args:
        a: (..., r, m)
        b: (..., d, r)
        rank: the new rank, at least r.
    """
    missing = rank - b.shape[-1]
    pad = torch.nn.functional.pad
    return pad(a, (0, 0, 0, missing)), pad(b, (0, missing))
