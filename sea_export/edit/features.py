"""Feature functions φ of non-linear edits (Φ-SEA), element by element, with their inverses.

Qiu et al., "Spectral Editing of Activations for Large Language Model Alignment", NeurIPS 2024 (arXiv 2405.09719),
section 3.3: activations are mapped by φ before Ω is computed, and the edit of h is φ⁻¹(P+ φ(h)) + φ⁻¹(P- φ(h)).

| φ | forward | inverse |
|---|---|---|
| identity | x | x |
| squared-exponential | exp(-x² / 2σ²) | ± sqrt(-2σ² ln clamp(y, ε, 1)) with the sign of x, since φ is even |
| tanh | tanh x | atanh(clamp(y, -1 + ε, 1 - ε)) |
| elu | x, or e^x - 1 below 0 | y, or ln(1 + max(y, -1 + ε)) below 0 |

with ε = 1e-4. The code published with the paper differs at run time: it does not use the result of φ, so that it
projects activations that are not mapped, and it inverts the squared exponential without the root. These are errors
there, and they are not repeated here.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sea_export.options import FEATURE_FUNCTIONS, check_choice, check_length_scale

__all__ = ["EPSILON", "FeatureFunction"]

EPSILON = 1e-4
"""The smallest distance from a pole at which an inverse is evaluated."""


@dataclass(frozen=True)
class FeatureFunction:
    """φ and its inverse. Finite arguments of any floating dtype never give NaN or infinity.

    Raises:
        InputError: the name is unknown, or float32 arithmetic cannot use the length scale.
    """

    name: str = "identity"
    """One of `FEATURE_FUNCTIONS`."""
    length_scale: float = 1.0
    """σ of the squared exponential."""

    def __post_init__(self) -> None:
        check_choice("feature-function", self.name, FEATURE_FUNCTIONS)
        check_length_scale(self.length_scale)

    @property
    def is_identity(self) -> bool:
        """Whether φ(x) = x."""
        return self.name == "identity"

    def forward(self, x: Tensor) -> Tensor:
        """φ(x).

        Args:
            x: any shape and floating dtype.

        Returns:
            The same shape; float32 for half precision, which is too coarse near a pole.
        """
        x = _wide(x)
        if self.name == "squared-exponential":
            return (-0.5 * (x / self.length_scale).square()).exp()
        if self.name == "tanh":
            return x.tanh()
        if self.name == "elu":
            return torch.where(x > 0, x, x.clamp(max=0).expm1())
        return x

    def inverse(self, y: Tensor, x: Tensor) -> Tensor:
        """φ⁻¹(y). If y is outside the range of φ, the nearest value inside is taken.

        Args:
            y: features, any shape and floating dtype.
            x: the activations from which the features were computed before the edit, same shape. Where φ is even, the
                result has their sign.

        Returns:
            The same shape; float32 for half precision.
        """
        y = _wide(y)
        if self.name == "squared-exponential":
            return _wide(x).sign() * self.length_scale * (-2 * y.clamp(EPSILON, 1).log()).sqrt()
        if self.name == "tanh":
            return y.clamp(-1 + EPSILON, 1 - EPSILON).atanh()
        if self.name == "elu":
            return torch.where(y > 0, y, y.clamp(-1 + EPSILON, 0).log1p())
        return y


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
