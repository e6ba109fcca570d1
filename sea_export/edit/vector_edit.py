"""Layer edits made of vectors: a constant that is added, or directions that are removed or kept alone.

With V (d, k) an orthonormal basis of the span of the vectors and c the coefficient, a row h becomes

| kind | edit |
|---|---|
| `add` | h + c v, with one vector v, as long as it is |
| `project`, `ablate` | h - c V Vᵀ h: at c = 1 nothing of h along the vectors is left |
| `keep` | (1 - c) h + c V Vᵀ h: at c = 1 only what h has along the vectors is left |

The coefficient is the strength of the edit. Vectors are added in Rimsky et al., "Steering Llama 2 via Contrastive
Activation Addition", ACL 2024 (arXiv 2312.06681), and directions are removed in Arditi et al., "Refusal in Language
Models Is Mediated by a Single Direction", NeurIPS 2024 (arXiv 2406.11717).
"""

from __future__ import annotations

import torch
from torch import Tensor

from sea_export.edit.layer_edit import LayerEdit
from sea_export.errors import InputError
from sea_export.options import check_choice, check_strength

__all__ = ["KINDS", "vector_layer_edit"]

KINDS = ("add", "ablate", "project", "keep")
"""What vectors may mean."""

# Singular values below this share of the largest one are what rounding leaves of vectors that depend on each other.
_PRECISION = 1e-5


def vector_layer_edit(vectors: Tensor, kind: str, coefficient: float) -> LayerEdit:
    """The edit of one target that vectors make.

    Args:
        vectors: (d,) or (k, d) of any floating dtype.
        kind: one of `KINDS`.
        coefficient: c.

    Raises:
        InputError: the vectors are zero or not finite, `add` is given several, or the coefficient is 0 or out of range.
            The caller puts in front of the message where the vectors are from.
    """
    check_choice("as", kind, KINDS)
    check_strength(coefficient)
    if coefficient == 0:
        raise InputError("--coefficient: at 0 the edit changes nothing. Give another number.")
    rows = torch.atleast_2d(vectors.double().cpu())
    if rows.ndim != 2 or not rows.isfinite().all() or not rows.any(dim=1).all():
        raise InputError(
            "vectors: one of them is zero, not finite, or no row of numbers, and gives no direction. Leave it out."
        )
    if kind == "add" and len(rows) > 1:
        raise InputError(
            f"--as: add takes one vector for each layer, and here are {len(rows)}. Choose project or keep."
        )
    basis = torch.zeros(rows.shape[1], 0, dtype=torch.float64) if kind == "add" else _basis(rows)
    nothing = torch.zeros(rows.shape[1], 0, dtype=torch.float64)
    edit = LayerEdit(
        positive=basis if kind == "keep" else nothing,
        negative=nothing if kind == "keep" else basis,
        identity=1 - coefficient if kind == "keep" else 1.0,
        strength=float(coefficient),
        scale=None,
        shift=coefficient * rows[0] if kind == "add" else None,
        reader=None,
        positive_values=torch.zeros(0),
        negative_values=torch.zeros(0),
        relative_change=None,
        signature=None,
        reader_error=None,
        projections={"add": "both", "keep": "positive"}.get(kind, "negative"),
    ).map_tensors(lambda tensor: tensor.float().contiguous())
    if not edit.is_finite:
        raise InputError("--coefficient: it gives values that float32 cannot hold. Lower it.")
    return edit


def _basis(rows: Tensor) -> Tensor:
    """(d, r) an orthonormal basis of the span of rows (k, d), which are taken at length 1."""
    _, values, basis = torch.linalg.svd(rows / rows.norm(dim=1, keepdim=True), full_matrices=False)
    return basis[values > _PRECISION * values[0]].T
