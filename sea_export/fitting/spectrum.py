"""Spectra of the cross-covariances between neutral, positive and negative activations.

Implements the estimation half of Qiu et al., "Spectral Editing of Activations for Large Language Model
Alignment", NeurIPS 2024 (arXiv 2405.09719), section 3: Ω± = H0ᵀ H± / n and its singular value decomposition. For
non-linear edits, φ(H0) and φ(H±) replace H0 and H±. All vectors are rows; n counts demonstrations and d is
the hidden size. Everything here is float64.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from sea_export.capture.activations import Activations
from sea_export.edit.features import FeatureFunction
from sea_export.errors import InputError
from sea_export.fitting.activation_statistics import ActivationStatistics, Moments, Statistic
from sea_export.fitting.constant_reader import constant_reader, constant_reader_of_rows
from sea_export.options import CENTERS, check_choice

__all__ = ["LayerSpectrum", "SpectrumFitter", "needed_statistics", "rank_for_variance", "signature"]


@dataclass(frozen=True)
class LayerSpectrum:
    """Left singular vectors and singular values of Ω+ and Ω-, up to their full numerical rank.

    Truncation takes the first columns, so that nothing is fitted again. d is the hidden size, and r the rank.
    """

    positive_vectors: Tensor
    """(d, r+) orthonormal columns: left singular vectors of Ω+."""
    positive_values: Tensor
    """(r+,) singular values of Ω+, descending."""
    negative_vectors: Tensor
    """(d, r-) orthonormal columns: left singular vectors of Ω-."""
    negative_values: Tensor
    """(r-,) singular values of Ω-, descending."""
    neutral_factor: Tensor
    """(m, d) F with FᵀF = H0ᵀH0 and m <= max(n, d). H0 is centred if the spectrum is."""
    neutral_mean: Tensor
    """(d,) mean neutral activation μ."""
    reader: Tensor | None
    """(d,) the ridge solution u of uᵀh ≈ 1, for `center="linear"`; else None."""
    reader_error: float | None
    """Root mean square of uᵀh - 1 over held-out demonstrations, for `center="linear"`; else None."""
    signature: float
    """Sum of the singular values of Eᵀ Y / n: see `signature`."""
    count: int
    """Number of demonstrations n."""
    center: str
    """One of `CENTERS`."""
    feature: FeatureFunction = field(default_factory=FeatureFunction)
    """φ, by which activations were mapped before Ω± was computed."""
    neutral: Tensor | None = None
    """(n, d) the neutral activations, not mapped by φ; None if φ is the identity, where `neutral_factor` is enough."""


def rank_for_variance(values: Tensor, variance: float) -> int:
    """The smallest k with Σ_{i<=k} σ_i² / Σ σ_i² >= variance.

    Args:
        values: (r,) singular values σ, descending.
        variance: share of the squared spectrum to keep, in (0, 1].

    Returns:
        k, between 0 (only for an empty or all-zero spectrum) and r.
    """
    energy = values.to(torch.float64).square().cumsum(0)
    if energy.numel() == 0 or energy[-1] == 0:
        return 0
    if variance >= 1:  # the sum loses small values to rounding, but all of them are asked for
        return int(values.count_nonzero())
    threshold = variance * energy[-1] * (1 - 4 * torch.finfo(torch.float64).eps)
    return int(torch.searchsorted(energy, threshold).item()) + 1


def signature(positive_mean: Tensor, negative_mean: Tensor) -> float:
    """Sum of the singular values of Eᵀ Y / n, with which `--layers signature:K` ranks layers.

    E (2n, d) stacks the positive and the negative activations and Y (2n, 2) holds their one-hot labels,
    so that Eᵀ Y / n has the two means as its columns (Qiu et al. 2024, section 4).

    Args:
        positive_mean: (d,) mean of the rows of H+.
        negative_mean: (d,) mean of the rows of H-.
    """
    means = torch.stack([positive_mean, negative_mean], dim=1).to(torch.float64)
    return float(torch.linalg.svdvals(means).sum())


def needed_statistics(center: str, feature: FeatureFunction) -> frozenset[Statistic]:
    """What a spectrum is computed from.

    Args:
        center: one of `CENTERS`.
        feature: φ.
    """
    needs = {Statistic.CROSS_MOMENTS}
    if center == "linear":  # the constant reader is solved and cross-validated on moments
        needs.add(Statistic.MOMENTS)
    if not feature.is_identity:  # nothing smaller than the activations tells what a non-linear edit does to them
        needs.add(Statistic.SAMPLES)
    return frozenset(needs)


class SpectrumFitter(ActivationStatistics):
    """Accumulates the activations of one target, batch by batch, and computes their `LayerSpectrum`."""

    def __init__(self, center: str = "off", feature: FeatureFunction | None = None) -> None:
        """Starts with no demonstrations.

        Args:
            center: one of `CENTERS`; `affine` and `linear` give the same centred spectrum.
            feature: φ of a non-linear edit, for `center="off"` only; None for the identity.

        Raises:
            InputError: `center` is unknown, or does not go with φ.
        """
        check_choice("center", center, CENTERS)
        feature = feature or FeatureFunction()
        if center != "off" and not feature.is_identity:
            raise InputError(
                f"--center: {center} goes with --feature-function identity only, not with {feature.name}. Choose off."
            )
        super().__init__(needed_statistics(center, feature), centered=center != "off", feature=feature)
        self.center = center

    def finish(self) -> LayerSpectrum:
        """The spectrum of everything seen so far.

        Raises:
            InputError: fewer than two demonstrations were seen.
        """
        if self.count < 2:
            raise InputError(f"demonstrations: {self.count} are too few for a spectrum. Give at least 2.")
        rows = self.rows()
        if rows is not None:
            kinds, folds = rows
            spectrum = _spectrum_of_rows(Activations(*kinds), folds, self.center)
        else:
            spectrum = _spectrum_of_moments(self.moments(), self.center)
        if Statistic.SAMPLES not in self.needs:
            return spectrum
        return replace(
            spectrum,
            feature=self.feature,
            neutral=self.neutral_samples(),
            signature=signature(*self.completion_means()),
        )


def _spectrum_of_moments(moments: Moments, center: str) -> LayerSpectrum:
    """The spectrum from d x d matrices, for n >= d."""
    means, covariances = moments.means(), moments.covariances()
    positive_vectors, positive_values = _left_singular(covariances[1])
    negative_vectors, negative_values = _left_singular(covariances[2])
    eigenvalues, eigenvectors = torch.linalg.eigh(covariances[0] * moments.count)
    reader, error = None, None
    if center == "linear":
        reader, error = constant_reader(moments.fold_products_, moments.fold_sums_, moments.fold_counts_)
    return LayerSpectrum(
        positive_vectors=positive_vectors,
        positive_values=positive_values,
        negative_vectors=negative_vectors,
        negative_values=negative_values,
        neutral_factor=eigenvalues.clamp(min=0).sqrt()[:, None] * eigenvectors.T,
        neutral_mean=means[0],
        reader=reader,
        reader_error=error,
        signature=signature(means[1], means[2]),
        count=moments.count,
        center=center,
    )


def _spectrum_of_rows(activations: Activations, folds: Tensor, center: str) -> LayerSpectrum:
    """The spectrum from n rows, for n < d: only n x n matrices are decomposed."""
    rows = activations if center == "off" else activations.centered()
    count = rows.neutral.shape[0]
    # H0ᵀ = Q R0 and H±ᵀ = Q± R±, so that Ω± = Q (R0 R±ᵀ / n) Q±ᵀ. The matrix in the middle is n x n.
    basis, neutral_core = torch.linalg.qr(rows.neutral.T)
    spectra = []
    for completion in (rows.positive, rows.negative):
        completion_core = torch.linalg.qr(completion.T, mode="r").R
        vectors, values = _left_singular(neutral_core @ completion_core.T / count)
        spectra.append((_canonical_signs(basis @ vectors), values))
    reader, error = None, None
    if center == "linear":
        kinds = torch.stack([activations.neutral, activations.positive, activations.negative])
        reader, error = constant_reader_of_rows(kinds, folds)
    return LayerSpectrum(
        positive_vectors=spectra[0][0],
        positive_values=spectra[0][1],
        negative_vectors=spectra[1][0],
        negative_values=spectra[1][1],
        neutral_factor=rows.neutral,
        neutral_mean=activations.neutral.mean(dim=0),
        reader=reader,
        reader_error=error,
        signature=signature(activations.positive.mean(dim=0), activations.negative.mean(dim=0)),
        count=count,
        center=center,
    )


def _left_singular(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Left singular vectors, and singular values above rounding. The signs do not depend on the solver."""
    vectors, values, _ = torch.linalg.svd(matrix, full_matrices=False)
    rounding = max(matrix.shape) * torch.finfo(matrix.dtype).eps * values[:1]
    rank = int((values > rounding).sum())
    return _canonical_signs(vectors[:, :rank]), values[:rank]


def _canonical_signs(vectors: Tensor) -> Tensor:
    """The columns with such signs that the element of largest magnitude in each is positive."""
    if vectors.shape[1] == 0:
        return vectors
    largest = vectors.gather(0, vectors.abs().argmax(dim=0, keepdim=True))
    return vectors * torch.where(largest < 0, -1.0, 1.0).to(vectors.dtype)
