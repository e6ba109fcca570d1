"""A matrix given as a product, as two factors of the smallest rank, or of a given one with the smallest error."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Factors", "best_factors"]

# Where directions cancel in float32 factors, singular values below this share of the largest one remain.
_PRECISION = torch.finfo(torch.float32).eps


@dataclass(frozen=True)
class Factors:
    """B A: the best approximation of rank r to a matrix. It is exact if r is the rank of the matrix."""

    b: Tensor
    """(d, r) orthonormal columns, the most important first, each with its element of largest magnitude positive."""
    a: Tensor
    """(r, m) orthogonal rows, whose norms are the singular values. r is at least 1, with B = 0 for a zero matrix."""
    exact_rank: int
    """The rank of the matrix."""
    relative_error: float
    """Frobenius norm of what was cut off, relative to that of the matrix; 0 if nothing was cut off."""


def best_factors(left: Tensor, right: Tensor, rank: int | None) -> Factors:
    """Factors a product by its singular value decomposition, without forming it.

    Args:
        left: (d, k) float64.
        right: (k, m) float64.
        rank: the largest rank allowed; None for the exact one.

    Returns:
        the best rank-R approximation in the Frobenius norm (Eckart and Young, 1936).
    """
    basis, triangle = torch.linalg.qr(left)
    vectors, values, rows = torch.linalg.svd(triangle @ right, full_matrices=False)
    exact_rank = int((values > _PRECISION * values.max()).sum()) if values.numel() else 0
    if exact_rank == 0:
        # The row is not zero, so that nobody who divides by its norm divides by zero.
        row = torch.zeros(1, right.shape[1], dtype=right.dtype)
        row[0, 0] = 1
        return Factors(torch.zeros(left.shape[0], 1, dtype=left.dtype), row, 0, 0.0)
    kept = exact_rank if rank is None else min(rank, exact_rank)
    b, a = basis @ vectors[:, :kept], values[:kept, None] * rows[:kept]
    signs = b.gather(0, b.abs().argmax(dim=0, keepdim=True)).sign()
    error = float(values[kept:exact_rank].norm() / values.norm())
    return Factors(b * signs, a * signs.T, exact_rank, error)
