"""The difference of means as an edit: z + s (μ+ - μ-), as contrastive activation addition moves activations.

Rimsky et al., "Steering Llama 2 via Contrastive Activation Addition", ACL 2024 (arXiv 2312.06681).
"""

from __future__ import annotations

from collections.abc import Mapping

from sea_export.edit.layer_edit import LayerEdit
from sea_export.fitting.activation_statistics import Statistic
from sea_export.fitting.edit_method import errors_of
from sea_export.fitting.linear_edit import linear_layer_edit
from sea_export.fitting.mean_statistics import MeanFitter, MeanStatistics, mean_options
from sea_export.model.targets import Target
from sea_export.options import FitOptions

__all__ = ["METHOD", "MeanDifferenceMethod"]


class MeanDifferenceMethod:
    """Moves every output from the mean negative activation towards the mean positive one."""

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
        """z + s (μ+ - μ-), or z + s (μ+ - μ-) (uᵀz) for `--center linear`.

        Raises:
            InputError: see `sea_export.fitting.linear_edit.linear_layer_edit`; the message names the target.
        """
        edits = {}
        for target, one in statistics.items():
            with errors_of(target):
                edits[target] = linear_layer_edit(
                    one.moments,
                    options.edit.strength,
                    one.signature,
                    constant=one.difference,
                    reads_constant=options.center == "linear",
                )
        return edits


METHOD = MeanDifferenceMethod()
