"""The spectral edit as a method: Qiu et al., NeurIPS 2024 (arXiv 2405.09719)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from sea_export.edit.features import FeatureFunction
from sea_export.edit.layer_edit import LayerEdit
from sea_export.fitting.activation_statistics import Statistic
from sea_export.fitting.edit_method import errors_of
from sea_export.fitting.spectrum import LayerSpectrum, SpectrumFitter, needed_statistics
from sea_export.fitting.truncate import build_layer_edit
from sea_export.model.targets import Target
from sea_export.options import FitOptions

__all__ = ["METHOD", "SpectralMethod"]


class SpectralMethod:
    """Keeps the directions of Ω+ and drops those of Ω-, at every target by itself."""

    def needed_statistics(self, options: FitOptions) -> frozenset[Statistic]:
        """Cross-moments always; moments for `--center linear`; samples for a non-linear edit."""
        return needed_statistics(options.center, _feature(options))

    def accumulator(self, options: FitOptions) -> SpectrumFitter:
        """What computes the spectrum of one target."""
        return SpectrumFitter(options.center, _feature(options))

    def statistics_options(self, options: FitOptions) -> FitOptions:
        """Centring, φ and capture. An `affine` edit needs a part of what is collected for a `linear` one."""
        return FitOptions(
            center="linear" if options.center == "affine" else options.center,
            feature_function=options.feature_function,
            length_scale=options.length_scale,
            template=options.template,
            capture=options.capture,
        )

    def layer_edits(self, statistics: Mapping[Target, LayerSpectrum], options: FitOptions) -> dict[Target, LayerEdit]:
        """The truncated spectrum of every target.

        Raises:
            InputError: see `sea_export.fitting.truncate.build_layer_edit`; the message names the target.
        """
        if options.center == "affine":  # the spectra may have been computed for a linear edit
            statistics = {
                target: replace(spectrum, center="affine", reader=None, reader_error=None)
                for target, spectrum in statistics.items()
            }
        edits = {}
        for target, spectrum in statistics.items():
            with errors_of(target):
                edits[target] = build_layer_edit(spectrum, options.edit)
        return edits


METHOD = SpectralMethod()


def _feature(options: FitOptions) -> FeatureFunction:
    return FeatureFunction(options.feature_function, options.length_scale)
