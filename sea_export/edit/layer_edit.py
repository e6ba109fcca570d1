"""The edit of one layer: frozen tensors in factor form, applied to activations and folded into weights.

Implements the editing half of Qiu et al., "Spectral Editing of Activations for Large Language Model Alignment",
NeurIPS 2024 (arXiv 2405.09719). With U+ (d, k+) and U- (d, k-) the leading left singular vectors of Ω+ and Ω-,

    P+ = U+ U+ᵀ,   P- = I - U- U-ᵀ,   M = P+ + P- = I + U+ U+ᵀ - U- U-ᵀ,   M' = D (I + s (M - I)),

where s is the strength and D is the diagonal of the normalization. For `average` D is 2⁻ˢ, which is a half at strength
1 and nothing at strength 0. The edit of an activation h is M' h. A centred edit is μ + M' (h - μ) = M' h + (I - M') μ
(`affine`), or M' h + (I - M') μ (uᵀh) with uᵀh ≈ 1 (`linear`).

Other methods have other factors. A linear map L R, with L (d, k) and R (k, d), is added to M. A constant b takes the
place of (I - M') μ: the edit is h + s b, or h + s b (uᵀh).

A non-linear edit (Φ-SEA) is D (h + s (e - h)) with e = φ⁻¹(P+ φ(h)) + φ⁻¹(P- φ(h)). For φ(h) = h it is the one above.
The normalizations `token` and `sequence` replace D by norms that are taken at run time: edited activations are scaled
to the norm that they had before, each token by itself, or each feature over all tokens of the forward call.

**Range of numbers.** Every tensor of an edit is finite, or the fit is refused. Directions that the demonstrations do
not span are not edited. So if all activations are zero, or equal and centred, the edit is the identity (halved, for
`average`). Activations of magnitude up to 1e15 have finite edits. In half precision the arithmetic is done in float32,
and a result beyond the range of the dtype is infinite, as everywhere in a model. A row or a feature that becomes zero
stays zero.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from sea_export.edit.features import FeatureFunction
from sea_export.edit.layer_form import check_form, why_unfoldable
from sea_export.edit.summary import LayerSummary
from sea_export.errors import InputError
from sea_export.model.targets import Target
from sea_export.options import check_strength

__all__ = ["LayerEdit"]


@dataclass(frozen=True)
class LayerEdit:
    """The edit of one target: h ↦ M' h, plus a constant for centred edits, or a non-linear edit. Float32 tensors."""

    positive: Tensor
    """(d, k+) orthonormal columns U+: the directions that P+ keeps."""
    negative: Tensor
    """(d, k-) orthonormal columns U-: the directions that P- drops."""
    identity: float
    """Coefficient of I in I + s (M - I): 1, but 1 - s for `projections="positive"`."""
    strength: float
    """s: the coefficient of U+ U+ᵀ, and with the opposite sign that of U- U-ᵀ."""
    scale: Tensor | None
    """(d,) diagonal of D, or None for the identity."""
    shift: Tensor | None
    """(d,) (I - M') μ for centred edits, s b for edits by a constant, else None."""
    reader: Tensor | None
    """(d,) u with uᵀh ≈ 1, for `center="linear"`, where the shift is multiplied by uᵀh; else None."""
    positive_values: Tensor
    """(r+,) all singular values of Ω+ (of Ω- for `projections="reversed"`), for reports."""
    negative_values: Tensor
    """(r-,) all singular values of Ω- (of Ω+ for `projections="reversed"`), for reports."""
    relative_change: float | None
    """‖edited H0 - H0‖ / ‖H0‖, Frobenius norms, without a normalization that is done at run time. The numerator is of
    centred activations if the edit is centred. None if it was not measured."""
    signature: float | None
    """The signature of the target: see `sea_export.fitting.spectrum.signature`. None if it was not measured."""
    reader_error: float | None
    """Held-out root mean square of uᵀh - 1, for `center="linear"`."""
    feature_function: str = "identity"
    """φ: one of `FEATURE_FUNCTIONS`."""
    length_scale: float = 1.0
    """σ of φ."""
    projections: str = "both"
    """Which of P+ and P- make the edit: `both`, `positive` or `negative`."""
    normalization: str = "none"
    """`token` or `sequence`; `none` for the other normalizations, which `scale` holds."""
    left: Tensor | None = None
    """(d, k) L of a linear map L R that is added to M, or None."""
    right: Tensor | None = None
    """(k, d) R, or None."""

    def __post_init__(self) -> None:
        check_form(
            projections=self.projections,
            normalization=self.normalization,
            feature_function=self.feature_function,
            length_scale=self.length_scale,
        )

    @property
    def size(self) -> int:
        """The hidden size d."""
        return self.positive.shape[0]

    @property
    def is_finite(self) -> bool:
        """Whether no tensor has a value that is NaN or infinite."""
        return all(bool(tensor.isfinite().all()) for tensor in self.tensors().values())

    @property
    def needs_bias(self) -> bool:
        """Whether folding the edit adds a constant, so that the output projection must have a bias."""
        return self.shift is not None and self.reader is None

    @property
    def first_share(self) -> float:
        """Share of the squares of `positive_values` that the first one has, in [0, 1]; 0 if there are none."""
        values = self.positive_values.double()
        energy = float(values.square().sum())
        return float(values[0].square()) / energy if energy > 0 else 0.0

    def summary(self, target: Target) -> LayerSummary:
        """What is told about the edit.

        Args:
            target: its target.
        """
        return LayerSummary(
            target=target,
            positive_rank=self.positive.shape[1],
            negative_rank=self.negative.shape[1],
            map_rank=None if self.left is None else self.left.shape[1],
            spectrum=self.positive_values.numel(),
            first_share=self.first_share,
            relative_change=self.relative_change,
            signature=self.signature,
            reader_error=self.reader_error,
            normalization=self.normalization,
        )

    @property
    def feature(self) -> FeatureFunction:
        """φ."""
        return FeatureFunction(self.feature_function, self.length_scale)

    @property
    def why_unfoldable(self) -> str | None:
        """Why no weight can hold the edit, and what could be fitted instead; None for an edit that folds."""
        return why_unfoldable(self.feature_function, self.normalization)

    def linear(self, activations: Tensor) -> Tensor:
        """A linear edit, without the constant of an `affine` edit and without a normalization at run time.

        Args:
            activations: (..., d) rows h, float32 or float64. The arithmetic is done in their dtype.

        Returns:
            (..., d) rows M' h, plus (I - M') μ (uᵀh) for `center="linear"`.
        """
        factors = self._cast(activations)
        kept = (activations @ factors.positive) @ factors.positive.T
        dropped = (activations @ factors.negative) @ factors.negative.T
        changed = kept - dropped
        if factors.left is not None and factors.right is not None:
            changed = changed + (activations @ factors.right.T) @ factors.left.T
        edited = self.identity * activations + self.strength * changed
        if factors.scale is not None:
            edited = edited * factors.scale
        if factors.shift is not None and factors.reader is not None:
            edited = edited + (activations @ factors.reader)[..., None] * factors.shift
        return edited

    def nonlinear(self, activations: Tensor) -> Tensor:
        """The non-linear edit D (h + s (φ⁻¹(P+ φ(h)) + φ⁻¹(P- φ(h)) - h)), without a normalization at run time.

        With `projections="positive"` or `"negative"` one of the two terms is left out.

        Args:
            activations: (..., d) rows h, float32 or float64. The arithmetic is done in their dtype.

        Returns:
            (..., d) rows.
        """
        factors, feature = self._cast(activations), self.feature
        features = feature.forward(activations)
        edited = torch.zeros_like(activations)
        if self.projections != "negative":
            kept = (features @ factors.positive) @ factors.positive.T
            edited = edited + feature.inverse(kept, activations)
        if self.projections != "positive":
            dropped = (features @ factors.negative) @ factors.negative.T
            edited = edited + feature.inverse(features - dropped, activations)
        edited = activations + self.strength * (edited - activations)
        return edited if factors.scale is None else edited * factors.scale

    def transform(self, activations: Tensor) -> Tensor:
        """`linear` or `nonlinear`, depending on φ.

        Args:
            activations: (..., d) rows h, float32 or float64.

        Returns:
            (..., d) rows.
        """
        return self.linear(activations) if self.feature.is_identity else self.nonlinear(activations)

    def apply(self, activations: Tensor) -> Tensor:
        """The edit of rows h: `transform`, the constant of an `affine` edit, and the normalization at run time.

        Args:
            activations: (..., d) of any floating dtype. Half precision is computed in float32. The normalization
                `sequence` takes its norms over all of these rows.

        Returns:
            (..., d) in the dtype of `activations`.
        """
        wide = activations if activations.dtype == torch.float64 else activations.float()
        edited = self.transform(wide)
        if self.needs_bias:
            assert self.shift is not None
            edited = edited + self.shift.to(edited)
        return _with_norms_of(wide, edited, self.normalization).to(activations.dtype)

    @property
    def has_a_dial(self) -> bool:
        """Whether it can be given another strength: scales belong to their own, and 0 tells of no edit."""
        return self.scale is None and self.strength != 0

    def with_strength(self, strength: float) -> LayerEdit:
        """The same edit with another strength.

        Args:
            strength: s.

        Raises:
            InputError: the strength is out of range, or the edit has normalization scales, which belong to its own
                strength, or that is 0.
        """
        check_strength(strength)
        if not self.has_a_dial:
            raise InputError(
                "--strength: an edit of strength 0, or with a normalization, cannot be given another one. Fit it again."
            )
        ratio = strength / self.strength
        return replace(
            self,
            identity=1 - strength if self.projections == "positive" else 1 + (self.identity - 1) * ratio,
            strength=strength,
            shift=None if self.shift is None else self.shift * ratio,
            relative_change=None if self.relative_change is None else self.relative_change * abs(ratio),
        )

    def require_foldable(self) -> None:
        """Raises InputError for an edit that no weight can hold."""
        if self.why_unfoldable:
            raise InputError(self.why_unfoldable)

    def to(self, device: torch.device) -> LayerEdit:
        """The same edit with its tensors on `device`."""
        return self.map_tensors(lambda tensor: tensor.to(device))

    def tensors(self) -> dict[str, Tensor]:
        """The tensors of the edit by field name, without fields that are None."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, Tensor)}

    def map_tensors(self, function: Callable[[Tensor], Tensor]) -> LayerEdit:
        """The same edit with `function` applied to each tensor."""
        mapped: dict[str, Any] = {name: function(tensor) for name, tensor in self.tensors().items()}
        return replace(self, **mapped)

    def numbers(self) -> dict[str, float | str | None]:
        """All other fields of the edit by name: numbers and text."""
        optional = {"scale", "shift", "reader", "left", "right"}
        names = [item.name for item in fields(self) if item.name not in self.tensors().keys() | optional]
        return {name: getattr(self, name) for name in names}

    def _cast(self, like: Tensor) -> LayerEdit:
        if like.dtype == self.positive.dtype and like.device == self.positive.device:
            return self
        return self.map_tensors(lambda tensor: tensor.to(like))


def _with_norms_of(before: Tensor, after: Tensor, normalization: str) -> Tensor:
    """`after`, rescaled to the norms of `before` for `token` or `sequence`. Both are (..., d). Zeros stay zeros."""
    if normalization == "token":
        old, new = before.norm(dim=-1, keepdim=True), after.norm(dim=-1, keepdim=True)
    elif normalization == "sequence":
        old, new = (rows.reshape(-1, rows.shape[-1]).norm(dim=0) for rows in (before, after))
    else:
        return after
    return after * torch.where(new > 0, old / new, 1.0)
