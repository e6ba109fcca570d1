"""Means and covariance of the activations of one target, for methods without spectra."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from sea_export.edit.features import FeatureFunction
from sea_export.fitting.activation_statistics import ActivationStatistics, Statistic
from sea_export.fitting.linear_edit import OutputMoments
from sea_export.fitting.spectrum import signature
from sea_export.options import FitOptions

__all__ = ["MeanFitter", "MeanStatistics", "mean_options"]


@dataclass(frozen=True)
class MeanStatistics:
    """Moments of the activations of one target. Float64."""

    means: Tensor
    """(3, d) the mean neutral, positive and negative activation: μ0, μ+ and μ-."""
    moments: OutputMoments
    """Over neutral, positive and negative activations together."""

    @property
    def difference(self) -> Tensor:
        """(d,) μ+ - μ-."""
        return self.means[1] - self.means[2]

    @property
    def covariance(self) -> Tensor:
        """(d, d) S: the covariance of neutral, positive and negative activations together."""
        mean = self.moments.mean
        return self.moments.second_moment - mean[:, None] * mean[None]

    @property
    def signature(self) -> float:
        """See `sea_export.fitting.spectrum.signature`."""
        return signature(self.means[1], self.means[2])


class MeanFitter(ActivationStatistics):
    """Accumulates the activations of one target, batch by batch, and computes their `MeanStatistics`."""

    def __init__(self) -> None:
        super().__init__(frozenset({Statistic.MOMENTS}), centered=True, feature=FeatureFunction())

    def finish(self) -> MeanStatistics:
        """The statistics of all activations. At least one demonstration was seen."""
        moments = self.moments()
        folds = OutputMoments(moments.fold_products_.cpu(), moments.fold_sums_.cpu(), moments.fold_counts_.cpu())
        return MeanStatistics(moments.means().cpu(), folds)


def mean_options(options: FitOptions) -> FitOptions:
    """The options on which means depend: what is captured."""
    return FitOptions(method=options.method, template=options.template, capture=options.capture)
