"""The vector that reads a constant from activations: the ridge solution u of uᵀh ≈ 1, for `--center linear`.

Its penalty is chosen by cross-validation over demonstrations, which needs only moments. Everything here is float64.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sea_export.fitting.activation_statistics import fold_moments

__all__ = ["constant_reader", "constant_reader_of_rows"]

# Penalties of the constant reader, relative to the mean eigenvalue of the activations' second moment.
_READER_PENALTIES = tuple(10.0**exponent for exponent in range(-8, 2))


def constant_reader_of_rows(rows: Tensor, folds: Tensor) -> tuple[Tensor, float]:
    """The same as `constant_reader`, from the activations themselves.

    Args:
        rows: (3, n, d) neutral, positive and negative activations.
        folds: (n,) the fold of each demonstration.

    Returns:
        see `constant_reader`.
    """
    kinds, count, size = rows.shape
    if kinds * count >= size:
        return constant_reader(*fold_moments(rows, folds))
    # The ridge solution lies in the span of the rows: solve it in an orthonormal basis of that span.
    basis = torch.linalg.qr(rows.flatten(0, 1).T).Q
    reader, error = constant_reader(*fold_moments(rows @ basis, folds))
    return basis @ reader, error


def constant_reader(products: Tensor, sums: Tensor, counts: Tensor) -> tuple[Tensor, float]:
    """The ridge solution u of uᵀh ≈ 1, with the penalty that cross-validation over demonstrations chooses.

    Args:
        products: (folds, d, d) Σ h hᵀ of each fold.
        sums: (folds, d) Σ h of each fold.
        counts: (folds,) number of h in each fold.

    Returns:
        u (d,) fitted on all folds, and the root mean square of uᵀh - 1 on held-out folds.
    """
    product, total = products.sum(0), sums.sum(0)
    scale = product.diagonal().mean()
    penalties = scale * torch.tensor(_READER_PENALTIES, dtype=product.dtype, device=product.device)
    errors = torch.zeros_like(penalties)
    for held_product, held_sum, held_count in zip(products, sums, counts, strict=True):
        if held_count == 0:
            continue
        readers = _ridge(product - held_product, total - held_sum, penalties)
        errors += held_count - 2 * readers @ held_sum + ((readers @ held_product) * readers).sum(dim=1)
    best = int(errors.argmin())
    reader = _ridge(product, total, penalties[best : best + 1])[0]
    return reader, float((errors[best].clamp(min=0) / counts.sum()).sqrt())


def _ridge(product: Tensor, total: Tensor, penalties: Tensor) -> Tensor:
    """(penalties, d): (Σ h hᵀ + λ I)⁻¹ Σ h for every penalty λ, from one eigendecomposition."""
    eigenvalues, eigenvectors = torch.linalg.eigh(product)
    coordinates = eigenvectors.T @ total
    # A penalty of exactly zero can only come from activations that are zero throughout.
    shrunk = coordinates / (eigenvalues.clamp(min=0) + penalties[:, None]).clamp(min=torch.finfo(product.dtype).tiny)
    return shrunk @ eigenvectors.T
