"""A matrix given as a product, as two factors of the smallest rank, or of a given one with the smallest error."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Factors", "best_factors"]

# Singular values below this share of the largest are what float32 factors leave of directions that cancel.
_PRECISION = torch.finfo(torch.float32).eps


@dataclass(frozen=True)
class Factors:
    """B A: the best approximation of its rank to a matrix, and exact if the rank is the matrix's own."""

    b: Tensor
    """(d, r) orthonormal columns, the most important first, each with its largest element positive."""
    a: Tensor
    """(r, m) orthogonal rows, whose norms are the singular values. The rank is 1 at least: of zeros if need be."""
    exact_rank: int
    """The matrix's own rank."""
    relative_error: float
    """Frobenius norm of what was cut off, relative to the matrix; 0 if nothing was."""


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
        # A row that is not zero, so that no norm of what it is added to need ever be.
        row = torch.zeros(1, right.shape[1], dtype=right.dtype)
        row[0, 0] = 1
        return Factors(torch.zeros(left.shape[0], 1, dtype=left.dtype), row, 0, 0.0)
    kept = exact_rank if rank is None else min(rank, exact_rank)
    b, a = basis @ vectors[:, :kept], values[:kept, None] * rows[:kept]
    signs = b.gather(0, b.abs().argmax(dim=0, keepdim=True)).sign()
    error = float(values[kept:exact_rank].norm() / values.norm())
    return Factors(b * signs, a * signs.T, exact_rank, error)
