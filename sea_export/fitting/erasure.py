"""The erasure of the direction that tells positive from negative activations, as an edit.

    z - s Δμ wᵀ (z - μ),    w = S⁻¹ Δμ / (Δμᵀ S⁻¹ Δμ),    Δμ = μ+ - μ-,    μ = (μ+ + μ-) / 2.

At strength 1 the two means become one, by the smallest change in the metric of S: Belrose et al., "LEACE: Perfect
linear concept erasure in closed form", NeurIPS 2023 (arXiv 2306.03819).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from sea_export.edit.layer_edit import LayerEdit
from sea_export.errors import InputError
from sea_export.fitting.activation_statistics import Statistic
from sea_export.fitting.edit_method import errors_of
from sea_export.fitting.linear_edit import linear_layer_edit
from sea_export.fitting.mean_statistics import MeanFitter, MeanStatistics, mean_options
from sea_export.model.targets import Target
from sea_export.options import FitOptions

__all__ = ["METHOD", "ErasureMethod"]

# Added to the diagonal of S, in units of its mean: few demonstrations leave most directions without variance.
_SHRINKAGE = 0.1


class ErasureMethod:
    """Takes from every output what tells positive from negative activations apart."""

    def needed_statistics(self, options: FitOptions) -> frozenset[Statistic]:
        """Moments alone."""
        return frozenset({Statistic.MOMENTS})

    def accumulator(self, options: FitOptions) -> MeanFitter:
        """What adds up the moments of one target."""
        return MeanFitter()

    def statistics_options(self, options: FitOptions) -> FitOptions:
        """See `sea_export.fitting.mean_statistics.mean_options`."""
        return mean_options(options)

    def layer_edits(self, statistics: Mapping[Target, MeanStatistics], options: FitOptions) -> dict[Target, LayerEdit]:
        """The edit above, with its constant as a bias, or read from z for `--center linear`; without one for `off`.

        Raises:
            InputError: the two means of a target are equal, or see
                `sea_export.fitting.linear_edit.linear_layer_edit`; the message names the target.
        """
        edits = {}
        for target, one in statistics.items():
            with errors_of(target):
                edits[target] = _erased(one, options)
        return edits


METHOD = ErasureMethod()


def _erased(statistics: MeanStatistics, options: FitOptions) -> LayerEdit:
    difference = statistics.difference
    covariance = statistics.covariance
    shrunk = covariance + _SHRINKAGE * covariance.diagonal().mean() * torch.eye(len(difference), dtype=torch.float64)
    direction = torch.linalg.solve(shrunk, difference)
    scale = float(difference @ direction)
    if not scale > 0:
        raise InputError(
            "--method: erasure has nothing to erase, because positive and negative activations have the same mean. "
            "Leave this layer out, or give other demonstrations."
        )
    reads = direction / scale
    middle = statistics.means[1:].mean(0)
    return linear_layer_edit(
        statistics.moments,
        options.edit.strength,
        statistics.signature,
        constant=None if options.center == "off" else difference * (reads @ middle),
        left=-difference[:, None],
        right=reads[None],
        reads_constant=options.center == "linear",
    )
