"""The gradient of the margin as an edit: z + s g, or its linear form z + s G z.

g = ∂m/∂b is the direction in which a bias b behind the target raises the margin of the demonstrations fastest, and G
the same for a linear map: see `sea_export.fitting.gradient_statistics`. G is a cross-covariance of gradients and
activations, as Ω of the spectral edit is one of activations.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from sea_export.edit.layer_edit import LayerEdit
from sea_export.fitting.activation_statistics import Statistic
from sea_export.fitting.edit_method import errors_of
from sea_export.fitting.gradient_statistics import GradientStatistics
from sea_export.fitting.linear_edit import linear_layer_edit
from sea_export.model.targets import Target
from sea_export.options import FitOptions

__all__ = ["METHOD", "GradientMethod", "biased", "gradient_options", "mapped"]


class GradientMethod:
    """Moves every output along the gradient of the margin."""

    def needed_statistics(self, options: FitOptions) -> frozenset[Statistic]:
        """Gradients of the margin, and moments of the outputs."""
        return frozenset({Statistic.MARGIN_GRADIENTS})

    def statistics_options(self, options: FitOptions) -> FitOptions:
        """See `gradient_options`."""
        return gradient_options(options)

    def layer_edits(
        self, statistics: Mapping[Target, GradientStatistics], options: FitOptions
    ) -> dict[Target, LayerEdit]:
        """z + s g, or z + s G z.

        Raises:
            InputError: see `sea_export.fitting.linear_edit.linear_layer_edit`; the message names the target.
        """
        if options.form == "bias":
            return biased({target: one.gradient for target, one in statistics.items()}, statistics, options)
        return mapped({target: _map(one) for target, one in statistics.items()}, statistics, options)


METHOD = GradientMethod()


def gradient_options(options: FitOptions) -> FitOptions:
    """The options on which gradients depend: the method, whether maps are asked for, and how texts are made."""
    return FitOptions(
        method=options.method,
        form="bias" if options.form == "bias" else "linear",
        template=options.template,
        capture=options.capture,
    )


def biased(
    biases: Mapping[Target, torch.Tensor], statistics: Mapping[Target, GradientStatistics], options: FitOptions
) -> dict[Target, LayerEdit]:
    """Edits by a constant: a bias, or for `--center linear` one that is read from the output.

    Args:
        biases: (d,) b of every target.
        statistics: of the same targets.
        options: those of the fit.
    """
    edits = {}
    for target, bias in biases.items():
        with errors_of(target):
            edits[target] = linear_layer_edit(
                statistics[target].moments,
                options.edit.strength,
                statistics[target].signature,
                constant=bias,
                reads_constant=options.center == "linear",
            )
    return edits


def mapped(
    maps: Mapping[Target, torch.Tensor], statistics: Mapping[Target, GradientStatistics], options: FitOptions
) -> dict[Target, LayerEdit]:
    """Edits by a linear map, or by its nearest map of rank `options.rank`.

    Args:
        maps: (d, d) D of every target.
        statistics: of the same targets.
        options: those of the fit.
    """
    edits = {}
    for target, change in maps.items():
        left, values, right = torch.linalg.svd(change, full_matrices=False)
        rank = min(options.rank, len(values)) if options.form == "low-rank" else len(values)
        with errors_of(target):
            edits[target] = linear_layer_edit(
                statistics[target].moments,
                options.edit.strength,
                statistics[target].signature,
                left=left[:, :rank] * values[:rank],
                right=right[:rank],
            )
    return edits


def _map(statistics: GradientStatistics) -> torch.Tensor:
    assert statistics.map_gradient is not None
    return statistics.map_gradient
