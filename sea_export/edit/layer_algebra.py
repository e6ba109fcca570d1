"""Layer edits as affine maps h ↦ M h + t: the dense matrix, the sum of changes, and what a product keeps of each.

Everything is computed in float64 from the low-rank form of `sea_export.edit.low_rank`, without a dense matrix but where
one is asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sea_export.edit.factors import best_factors
from sea_export.edit.layer_edit import LayerEdit
from sea_export.edit.low_rank import LowRankEdit, low_rank_edit
from sea_export.errors import InputError

__all__ = ["dense_constant", "dense_matrix", "kept_of_each", "sum_of_changes"]


def dense_matrix(edits: Sequence[LayerEdit]) -> Tensor:
    """(d, d) M of the product of linear edits h ↦ M h + t, in float64.

    Args:
        edits: at least one, in the order in which they are applied.

    Raises:
        InputError: an edit is not linear.
    """
    return _Change.of(edits).dense + torch.eye(edits[0].size, dtype=torch.float64)


def dense_constant(edits: Sequence[LayerEdit]) -> Tensor:
    """(d,) t of the product of linear edits h ↦ M h + t, in float64.

    Args:
        edits: at least one, in the order in which they are applied.

    Raises:
        InputError: an edit is not linear.
    """
    return _Change.of(edits).constant


def sum_of_changes(members: Sequence[Sequence[LayerEdit]]) -> LayerEdit:
    """The edit whose change is the sum of the changes of several edits: M = I + Σ (Mᵢ - I), t = Σ tᵢ.

    Args:
        members: each a product of linear edits of one target, in the order in which they are applied.

    Returns:
        An edit of strength 1, whose linear part has the lowest rank that it can have.

    Raises:
        InputError: an edit is not linear, or the sum scales a feature by zero, which no layer edit holds.
    """
    changes = [_Change.of(member) for member in members]
    diagonal = 1 + torch.stack([change.diagonal for change in changes]).sum(dim=0)
    left = torch.cat([change.left for change in changes], dim=1)
    right = torch.cat([change.right for change in changes])
    uniform = bool((diagonal == diagonal[0]).all())
    if not uniform and not diagonal.all():
        raise InputError(
            "edits: their sum scales a feature by zero, because of their normalization. Fit them with --normalization "
            "none."
        )
    scaled = left if uniform else left / diagonal[:, None]
    factors = best_factors(scaled, right, None)
    # Of changes that cancel only their rounding remains.
    remaining = factors.a.norm(dim=1) > torch.finfo(torch.float32).eps * scaled.norm() * right.norm()
    remaining &= factors.b.any(dim=0)
    constant = torch.stack([change.constant for change in changes]).sum(dim=0)
    size = len(diagonal)
    return LayerEdit(
        positive=torch.zeros(size, 0),
        negative=torch.zeros(size, 0),
        identity=float(diagonal[0]) if uniform else 1.0,
        strength=1.0,
        scale=None if uniform else diagonal,
        shift=constant if constant.any() else None,
        reader=None,
        positive_values=torch.zeros(0),
        negative_values=torch.zeros(0),
        relative_change=None,
        signature=None,
        reader_error=None,
        left=factors.b[:, remaining] if remaining.any() else None,
        right=factors.a[remaining] if remaining.any() else None,
    ).map_tensors(lambda tensor: tensor.float().contiguous())


def kept_of_each(edits: Sequence[LayerEdit]) -> tuple[float | None, ...]:
    """How much of the change of each edit their product has: the product's change, projected on the edit's own.

    The change of h ↦ M h + t is the matrix [M - I, t], and the inner product that of Frobenius. 1 is the whole change,
    0 none of it, and less than 0 the opposite. More than 1 is possible where several edits change the same.

    Args:
        edits: at least one, in the order in which they are applied.

    Returns:
        A share for each edit; None for one that changes nothing.

    Raises:
        InputError: an edit is not linear.
    """
    product = _Change.of(edits)
    changes = [_Change.of([edit]) for edit in edits]
    squares = [change.inner(change) for change in changes]
    return tuple(
        product.inner(change) / square if square > 0 else None for change, square in zip(changes, squares, strict=True)
    )


@dataclass(frozen=True)
class _Change:
    """What h ↦ M h + t changes: M - I = diag(diagonal) + left right, and t. Float64, on the CPU."""

    diagonal: Tensor
    """(d,)"""
    left: Tensor
    """(d, k)"""
    right: Tensor
    """(k, d)"""
    constant: Tensor
    """(d,)"""

    @classmethod
    def of(cls, edits: Sequence[LayerEdit]) -> _Change:
        for edit in edits:
            edit.require_foldable()
        product: LowRankEdit = low_rank_edit(edits)
        scaled = product.scale[:, None] * product.left
        return cls(product.scale * product.identity - 1, scaled, product.right, product.shift)

    @property
    def dense(self) -> Tensor:
        """(d, d) M - I."""
        return self.diagonal.diag() + self.left @ self.right

    def inner(self, other: _Change) -> float:
        """The product of Frobenius of two changes, from their factors."""
        own, others = ((one.left * one.right.T).sum(dim=1) for one in (self, other))
        diagonals = self.diagonal @ other.diagonal + self.diagonal @ others + other.diagonal @ own
        factors = ((self.left.T @ other.left) * (self.right @ other.right.T)).sum()
        return float(diagonals + factors + self.constant @ other.constant)
