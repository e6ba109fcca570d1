"""Layer edits of methods without spectra: h ↦ h + s (L R h + b), where the constant may be read from h.

The constant of the `affine` form is a bias. In the `linear` form it is b (uᵀh), with uᵀh ≈ 1: see
`sea_export.fitting.constant_reader`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sea_export.edit.layer_edit import LayerEdit
from sea_export.errors import InputError
from sea_export.fitting.constant_reader import constant_reader

__all__ = ["OutputMoments", "linear_layer_edit"]


@dataclass(frozen=True)
class OutputMoments:
    """Moments of the activations h that an edit will meet, in folds. Float64, on the CPU."""

    products: Tensor
    """(folds, d, d) Σ h hᵀ of each fold."""
    sums: Tensor
    """(folds, d) Σ h of each fold."""
    counts: Tensor
    """(folds,) the number of h in each fold."""

    @property
    def second_moment(self) -> Tensor:
        """(d, d) the mean of h hᵀ."""
        return self.products.sum(0) / self.counts.sum()

    @property
    def mean(self) -> Tensor:
        """(d,) the mean of h."""
        return self.sums.sum(0) / self.counts.sum()


def linear_layer_edit(
    moments: OutputMoments,
    strength: float,
    signature: float,
    *,
    constant: Tensor | None = None,
    left: Tensor | None = None,
    right: Tensor | None = None,
    reads_constant: bool = False,
) -> LayerEdit:
    """The edit h ↦ h + s (L R h + b), rounded once to float32.

    Args:
        moments: of the activations.
        strength: s.
        signature: that of the target.
        constant: (d,) b; None for none.
        left: (d, k) L; None for no linear map.
        right: (k, d) R.
        reads_constant: whether the constant is b (uᵀh).

    Raises:
        InputError: float32 cannot hold the edit. The caller puts the target's name in front of the message.
    """
    size = moments.sums.shape[1]
    reader, reader_error = None, None
    if constant is not None and reads_constant:
        reader, reader_error = constant_reader(moments.products, moments.sums, moments.counts)
    change = torch.zeros(size, size, dtype=torch.float64) if left is None or right is None else left @ right
    offset = torch.zeros(size, dtype=torch.float64) if constant is None else constant
    second, mean = moments.second_moment, moments.mean
    changed = ((change @ second) * change).sum() + 2 * offset @ (change @ mean) + offset @ offset
    relative = abs(strength) * float((changed.clamp(min=0) / second.trace().clamp(min=1e-300)).sqrt())
    edit = LayerEdit(
        positive=torch.zeros(size, 0),
        negative=torch.zeros(size, 0),
        identity=1.0,
        strength=strength,
        scale=None,
        shift=None if constant is None else strength * constant,
        reader=reader,
        positive_values=torch.zeros(0),
        negative_values=torch.zeros(0),
        relative_change=relative,
        signature=signature,
        reader_error=reader_error,
        left=left,
        right=right,
    ).map_tensors(lambda tensor: tensor.float().contiguous().cpu())
    if not (max(abs(strength), relative) < torch.finfo(torch.float32).max and edit.is_finite):
        raise InputError(
            f"--strength: {strength:g} gives values that float32 cannot hold. Lower it, or leave this layer out."
        )
    return edit
