"""Two versions of a matrix, reduced together to a triangle, some of their columns at a time.

For A and B of shape (d, M), [Aᵀ, (B - A)ᵀ] = Q [R_A, R_Δ] is a thin QR decomposition: Q has orthonormal columns, and R
at most 2d rows. So B - A has the singular values of R_Δ, and D A = B - A is solved by R_A Dᵀ = R_Δ, without A or B in
memory as a whole. The triangle of the rows so far and of some new ones is that of all of them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["JointTriangle", "joint_triangle"]


@dataclass(frozen=True)
class JointTriangle:
    """The triangle [R_A, R_Δ] of A and B of shape (d, M), float64."""

    before: Tensor
    """(min(M, 2d), d) R_A."""
    change: Tensor
    """(min(M, 2d), d) R_Δ."""
    inputs: int
    """M."""

    def spectrum(self) -> tuple[Tensor, Tensor]:
        """The singular values (r,) of B - A, and its left singular vectors as columns (d, r)."""
        _, values, vectors = torch.linalg.svd(self.change, full_matrices=False)
        return values, vectors.T

    def rows_of(self, directions: Tensor) -> Tensor:
        """The rows R of the D = U R of which U R A is the nearest to U Uᵀ (B - A), by least squares.

        Args:
            directions: (d, k) the orthonormal columns of U.

        Returns:
            (k, d) Uᵀ (B - A) A⁺.
        """
        return torch.linalg.lstsq(self.before, self.change @ directions, driver="gelsd").solution.T

    def input_norms(self, outputs: Tensor) -> Tensor:
        """The norms of the smallest inputs that A maps nearest to some outputs: ‖A⁺ y‖ of each.

        Args:
            outputs: (n, d) rows y.

        Returns:
            (n,)
        """
        return torch.linalg.lstsq(self.before.T, outputs.T, driver="gelsd").solution.norm(dim=0)


def joint_triangle(pieces: Iterable[tuple[Tensor, Tensor]], size: int) -> JointTriangle:
    """The triangle of two matrices.

    Args:
        pieces: some columns of both at a time, as rows: twice (n, d), float64.
        size: d.
    """
    triangle, inputs = torch.empty(0, 2 * size, dtype=torch.float64), 0
    for before, after in pieces:
        rows = torch.cat([triangle, torch.cat([before, after - before], dim=1)])
        triangle = torch.linalg.qr(rows, mode="r").R
        inputs += len(before)
    return JointTriangle(triangle[:, :size], triangle[:, size:], inputs)
