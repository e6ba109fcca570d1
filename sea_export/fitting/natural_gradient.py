"""The natural gradient of the margin as an edit: the step that gains most for a given KL from the model itself.

The KL of a small change θ is ½ θᵀ F θ, F the Fisher information (Amari, "Natural Gradient Works Efficiently in
Learning", 1998), so the step is (F + λI)⁻¹ g. For biases F is that of all targets together. It is estimated from s
samples f, and the step is computed in their span (Woodbury):

    F = 1/s Σ f fᵀ = AᵀA,    (F + λI)⁻¹ g = (g - Aᵀ (λI + A Aᵀ)⁻¹ A g) / λ.

For a linear map F is taken to be the Kronecker product of Δ and C (Martens and Grosse, "Optimizing Neural Networks with
Kronecker-factored Approximate Curvature", 2015): D = (Δ + λI)⁻¹ G (C + μI)⁻¹.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from sea_export.edit.layer_edit import LayerEdit
from sea_export.fitting.activation_statistics import Statistic
from sea_export.fitting.gradient import biased, gradient_options, mapped
from sea_export.fitting.gradient_statistics import GradientStatistics
from sea_export.model.targets import Target
from sea_export.options import FitOptions

__all__ = ["METHOD", "NaturalGradientMethod", "natural_biases", "natural_map"]

_BIAS_DAMPING = 10.0
"""λ of biases, in units of the mean diagonal of F."""
_MAP_DAMPING = 1.0
"""λ and μ of linear maps, in units of the mean diagonals of Δ and C."""


class NaturalGradientMethod:
    """Moves the outputs of all targets along the natural gradient of the margin."""

    def needed_statistics(self, options: FitOptions) -> frozenset[Statistic]:
        """Gradients of the margin, and of the log-likelihood of neutral text."""
        return frozenset({Statistic.MARGIN_GRADIENTS, Statistic.NEUTRAL_GRADIENTS})

    def statistics_options(self, options: FitOptions) -> FitOptions:
        """See `sea_export.fitting.gradient.gradient_options`."""
        return gradient_options(options)

    def layer_edits(
        self, statistics: Mapping[Target, GradientStatistics], options: FitOptions
    ) -> dict[Target, LayerEdit]:
        """z + s b, or z + s D z.

        Raises:
            InputError: see `sea_export.fitting.linear_edit.linear_layer_edit`; the message names the target.
        """
        if options.form == "bias":
            damping = _BIAS_DAMPING if options.damping is None else options.damping
            return biased(natural_biases(statistics, damping), statistics, options)
        damping = _MAP_DAMPING if options.damping is None else options.damping
        return mapped({target: natural_map(one, damping) for target, one in statistics.items()}, statistics, options)


METHOD = NaturalGradientMethod()


def natural_biases(
    statistics: Mapping[Target, GradientStatistics], damping: float = _BIAS_DAMPING
) -> dict[Target, Tensor]:
    """(F + λI)⁻¹ g over all targets together.

    Args:
        statistics: of all edited targets, with the same number of samples.
        damping: λ in units of the mean diagonal of F.

    Returns:
        For every target its part of the step, (d,) float64.
    """
    gradient = torch.cat([one.gradient for one in statistics.values()])
    samples = torch.cat([one.samples for one in statistics.values()], dim=1)
    samples = samples / len(samples) ** 0.5
    gram = samples @ samples.T
    penalty = damping * gram.trace() / gradient.numel()
    inner = torch.linalg.solve(gram + penalty * torch.eye(len(gram), dtype=gram.dtype), samples @ gradient)
    step = (gradient - samples.T @ inner) / penalty
    parts = step.split([one.gradient.numel() for one in statistics.values()])
    return dict(zip(statistics, parts, strict=True))


def natural_map(statistics: GradientStatistics, damping: float = _MAP_DAMPING) -> Tensor:
    """D = (Δ + λI)⁻¹ G (C + μI)⁻¹ of one target, (d, d) float64.

    Args:
        statistics: those of the target, with G and Δ.
        damping: λ and μ in units of the mean diagonals.
    """
    assert statistics.map_gradient is not None
    assert statistics.curvature is not None
    outer = torch.linalg.solve(_damped(statistics.curvature, damping), statistics.map_gradient)
    return torch.linalg.solve(_damped(statistics.moments.second_moment, damping), outer.T).T


def _damped(matrix: Tensor, damping: float) -> Tensor:
    return matrix + damping * matrix.diagonal().mean() * torch.eye(len(matrix), dtype=matrix.dtype)
