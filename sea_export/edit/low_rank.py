"""Layer edits as the identity plus a change of low rank: one form for the product of several edits.

Every linear edit of `sea_export.edit.layer_edit` is h ↦ D (c h + L R h) + t. L and R hold U+ and U- or the factors of a
linear map, and one more column and row for `center="linear"`; t is for `center="affine"`. The product of two such edits
has the same form:

    D₂ (c₂ + L₂ R₂) D₁ (c₁ + L₁ R₁) = D₂ D₁ (c₂ c₁ + [c₂ L₁, D₁⁻¹ L₂] [R₁; R₂ D₁ (c₁ + L₁ R₁)]).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sea_export.edit.layer_edit import LayerEdit
from sea_export.errors import InputError

__all__ = ["LowRankEdit", "low_rank_edit"]


@dataclass(frozen=True)
class LowRankEdit:
    """The edit h ↦ scale ∘ (identity h + left (right h)) + shift. Tensors are float64, on the CPU."""

    scale: Tensor
    """(d,) diagonal of D. None of its elements is zero."""
    identity: float
    """c: 0 or 1 in what `low_rank_edit` returns, which moves every other value into the scale."""
    left: Tensor
    """(d, k) L."""
    right: Tensor
    """(k, d) R."""
    shift: Tensor
    """(d,) t."""

    def apply(self, activations: Tensor) -> Tensor:
        """The edit of rows.

        Args:
            activations: (..., d) float64.

        Returns:
            (..., d) float64.
        """
        changed = self.identity * activations + (activations @ self.right.T) @ self.left.T
        return self.scale * changed + self.shift

    def then(self, following: LowRankEdit) -> LowRankEdit:
        """The product of this edit and one that is applied after it."""
        scaled = following.right * self.scale
        return LowRankEdit(
            scale=following.scale * self.scale,
            identity=following.identity * self.identity,
            left=torch.cat([following.identity * self.left, following.left / self.scale[:, None]], dim=1),
            right=torch.cat([self.right, self.identity * scaled + (scaled @ self.left) @ self.right]),
            shift=following.scale * (following.identity * self.shift + following.left @ (following.right @ self.shift))
            + following.shift,
        )


def low_rank_edit(edits: Sequence[LayerEdit]) -> LowRankEdit:
    """The product of layer edits.

    Args:
        edits: at least one, in the order in which they are applied.

    Raises:
        InputError: an edit scales a feature by zero, which no fit gives.
    """
    product, *following = (_one(edit) for edit in edits)
    for edit in following:
        product = product.then(edit)
    if product.identity in (0.0, 1.0):
        return product
    return LowRankEdit(
        scale=product.scale * product.identity,
        identity=1.0,
        left=product.left / product.identity,
        right=product.right,
        shift=product.shift,
    )


def _one(edit: LayerEdit) -> LowRankEdit:
    tensors = {name: tensor.double().cpu() for name, tensor in edit.tensors().items()}
    positive, negative = tensors["positive"], tensors["negative"]
    zeros = torch.zeros(edit.size, dtype=torch.float64)
    scale = tensors.get("scale", zeros + 1)
    if not scale.all():
        raise InputError("the edit: one of its features is scaled by zero, which no fit gives. Fit it again.")
    left = [edit.strength * positive, -edit.strength * negative]
    right = [positive.T, negative.T]
    if edit.left is not None:
        left.append(edit.strength * tensors["left"])
        right.append(tensors["right"])
    shift = tensors.get("shift", zeros)
    if edit.reader is not None:  # shift (uᵀh) is one more column and row
        left.append((shift / scale)[:, None])
        right.append(tensors["reader"][None])
        shift = zeros
    return LowRankEdit(scale, edit.identity, torch.cat(left, dim=1), torch.cat(right), shift)
