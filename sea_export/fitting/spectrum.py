"""Spectra of the cross-covariances between neutral, positive and negative activations.

Implements the estimation half of Qiu et al., "Spectral Editing of Activations for Large Language Model
Alignment", NeurIPS 2024 (arXiv 2405.09719), section 3: Ω± = H0ᵀ H± / n and its singular value decomposition, for
non-linear edits of φ(H0) and φ(H±). All vectors are rows; n counts demonstrations and d is the hidden size.
Everything here is float64.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from sea_export.capture.activations import Activations
from sea_export.edit.features import FeatureFunction
from sea_export.errors import InputError
from sea_export.fitting.constant_reader import READER_FOLDS, constant_reader, constant_reader_of_rows, fold_moments
from sea_export.options import CENTERS, check_choice

__all__ = ["LayerSpectrum", "SpectrumFitter", "rank_for_variance", "signature"]


@dataclass(frozen=True)
class LayerSpectrum:
    """Left singular vectors and singular values of Ω+ and Ω-, to their full numerical rank.

    Truncating an edit is taking the first columns: nothing is ever fitted again.
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
    """(m, d) with m <= max(n, d): FᵀF = H0ᵀH0, of the centred H0 where the spectrum is centred."""
    neutral_mean: Tensor
    """(d,) mean neutral activation μ."""
    reader: Tensor | None
    """(d,) ridge solution u of uᵀh ≈ 1, for `linear` centring only."""
    reader_error: float | None
    """Root mean square of uᵀh - 1 over held-out demonstrations."""
    signature: float
    """Sum of the singular values of Eᵀ Y / n: see `signature`."""
    count: int
    """Number of demonstrations n."""
    center: str
    """One of `CENTERS`."""
    feature: FeatureFunction = field(default_factory=FeatureFunction)
    """φ, by which the activations were mapped before Ω± was formed."""
    neutral: Tensor | None = None
    """(n, d) the neutral activations themselves, not mapped, where φ is not the identity: no factor stands for them."""


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
    if variance >= 1:  # small values are lost in the sum, but all of it is all of them
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


class SpectrumFitter:
    """Accumulates activations batch by batch and returns their `LayerSpectrum`.

    Rows are kept while they take less room than d x d moments would, and added to the moments beyond that:
    memory is bounded by the hidden size, not by the number of demonstrations, and no d x d matrix is formed
    or decomposed while n < d.
    """

    def __init__(self, center: str = "off", feature: FeatureFunction | None = None) -> None:
        """Starts with no demonstrations.

        Args:
            center: one of `CENTERS`; `affine` and `linear` give the same centred spectrum.
            feature: φ of a non-linear edit, for `center="off"` only. The neutral activations are then all kept, since
                nothing smaller tells what the edit does to them.

        Raises:
            InputError: `center` is unknown, or does not go with φ.
        """
        check_choice("center", center, CENTERS)
        self.center = center
        self.feature = feature or FeatureFunction()
        if center != "off" and not self.feature.is_identity:
            raise InputError(f"--center {center} goes with --feature-function identity only, not {self.feature.name}")
        self.count = 0
        self._neutral: list[Tensor] = []
        self._completion_sums: Tensor | float = 0.0
        self._rows: list[Tensor] = []
        self._folds: list[Tensor] = []
        self._buffered = 0
        self._moments: _Moments | None = None

    def update(self, activations: Activations) -> SpectrumFitter:
        """Adds the activations of some demonstrations and returns the fitter itself.

        Args:
            activations: neutral, positive and negative rows, each (batch, d), of any floating dtype.

        Raises:
            InputError: the three shapes differ from one another, or a value is not finite.
        """
        kinds = (activations.neutral, activations.positive, activations.negative)
        shapes = [tuple(kind.shape) for kind in kinds]
        if len(set(shapes)) > 1:
            raise InputError(f"neutral, positive and negative activations differ in shape: {shapes}")
        rows = torch.stack(kinds)
        if not torch.isfinite(rows).all():
            raise InputError("an activation is NaN or infinite: load the model in float32 (--dtype float32)")
        if not self.feature.is_identity:
            self._neutral.append(rows[0].clone())
            self._completion_sums = self._completion_sums + rows[1:].sum(dim=1, dtype=torch.float64)
        self._rows.append(rows)
        self._folds.append((torch.arange(rows.shape[1], device=rows.device) + self.count) % READER_FOLDS)
        self._buffered += rows.shape[1]
        self.count += rows.shape[1]
        self._flush_if_many()
        return self

    def merge(self, other: SpectrumFitter) -> SpectrumFitter:
        """Adds all that another fitter of the same settings has seen, and returns the fitter itself.

        The spectrum is, to rounding, that of one fitter which has seen everything, if the other has been given whole
        rounds of `READER_FOLDS` demonstrations, or the last ones.

        Args:
            other: it is not to be used any more.
        """
        self.count += other.count
        self._completion_sums = self._completion_sums + other._completion_sums
        self._neutral += other._neutral
        self._rows += other._rows
        self._folds += other._folds
        self._buffered += other._buffered
        if other._moments is not None:
            if self._moments is None:
                self._moments = other._moments
            else:
                self._moments.add(other._moments)
        self._flush_if_many()
        return self

    def to(self, device: torch.device) -> SpectrumFitter:
        """A fitter that has seen the same, with its tensors on `device`."""
        moved = copy.copy(self)
        moved._neutral, moved._rows, moved._folds = (
            [tensor.to(device) for tensor in tensors] for tensors in (self._neutral, self._rows, self._folds)
        )
        if isinstance(self._completion_sums, Tensor):
            moved._completion_sums = self._completion_sums.to(device)
        moved._moments = None if self._moments is None else self._moments.to(device)
        return moved

    def finish(self) -> LayerSpectrum:
        """The spectrum of everything seen so far.

        Raises:
            InputError: fewer than two demonstrations were seen.
        """
        if self.count < 2:
            raise InputError(f"{self.count} demonstrations: a spectrum needs at least 2")
        if self._moments is None and self._buffered < self._rows[0].shape[2]:
            spectrum = _spectrum_of_rows(Activations(*self._features()), torch.cat(self._folds), self.center)
        else:
            self._flush()
            assert self._moments is not None
            spectrum = self._moments.finish()
        if self.feature.is_identity:
            return spectrum
        assert isinstance(self._completion_sums, Tensor)
        return replace(
            spectrum,
            feature=self.feature,
            neutral=torch.cat(self._neutral).to(torch.float64),
            signature=signature(*self._completion_sums / self.count),
        )

    def _features(self) -> Tensor:
        """(3, n, d) float64: the waiting rows, mapped by φ."""
        return self.feature.forward(torch.cat(self._rows, dim=1).to(torch.float64))

    def _flush_if_many(self) -> None:
        if self._rows and self._buffered >= _Moments.matrices(self.center) * self._rows[0].shape[2]:
            self._flush()

    def _flush(self) -> None:
        if not self._rows:
            return
        rows = self._features()
        if self._moments is None:
            self._moments = _Moments(rows, self.center)
        self._moments.update(rows, torch.cat(self._folds))
        self._rows, self._folds, self._buffered = [], [], 0


class _Moments:
    """First and second moments of (3, batch, d) rows, about a pilot mean so that centring cancels little."""

    def __init__(self, rows: Tensor, center: str) -> None:
        size = rows.shape[2]
        self.center = center
        self.count = 0
        self.pilot = rows.mean(dim=1) if center != "off" else rows.new_zeros(3, size)
        self.sums_ = rows.new_zeros(3, size)
        # Products of the neutral rows with themselves, the positive and the negative ones.
        self.products_ = rows.new_zeros(3, size, size)
        if center == "linear":
            self.fold_products_ = rows.new_zeros(READER_FOLDS, size, size)
            self.fold_sums_ = rows.new_zeros(READER_FOLDS, size)
            self.fold_counts_ = rows.new_zeros(READER_FOLDS)

    @staticmethod
    def matrices(center: str) -> int:
        """How many d x d matrices the moments hold."""
        return 3 + (READER_FOLDS if center == "linear" else 0)

    def update(self, rows: Tensor, folds: Tensor) -> None:
        shifted = rows - self.pilot[:, None]
        self.sums_ += shifted.sum(dim=1)
        self.products_ += shifted[0].T @ shifted
        if self.center == "linear":
            products, sums, counts = fold_moments(rows, folds)
            self.fold_products_ += products
            self.fold_sums_ += sums
            self.fold_counts_ += counts
        self.count += rows.shape[1]

    def to(self, device: torch.device) -> _Moments:
        moved = copy.copy(self)
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(moved, name, value.to(device))
        return moved

    def add(self, other: _Moments) -> None:
        """Adds moments that were taken about another pilot: Σ (x - p)(y - q)ᵀ from Σ (x - p')(y - q')ᵀ."""
        shifts = other.pilot - self.pilot
        self.products_ += (
            other.products_
            + other.sums_[0][None, :, None] * shifts[:, None, :]
            + shifts[0][None, :, None] * other.sums_[:, None, :]
            + other.count * shifts[0][None, :, None] * shifts[:, None, :]
        )
        self.sums_ += other.sums_ + other.count * shifts
        if self.center == "linear":
            self.fold_products_ += other.fold_products_
            self.fold_sums_ += other.fold_sums_
            self.fold_counts_ += other.fold_counts_
        self.count += other.count

    def finish(self) -> LayerSpectrum:
        shifted_means = self.sums_ / self.count
        means = shifted_means + self.pilot
        covariances = self.products_ / self.count
        if self.center != "off":
            covariances = covariances - shifted_means[0][None, :, None] * shifted_means[:, None, :]
        positive_vectors, positive_values = _left_singular(covariances[1])
        negative_vectors, negative_values = _left_singular(covariances[2])
        eigenvalues, eigenvectors = torch.linalg.eigh(covariances[0] * self.count)
        reader, error = None, None
        if self.center == "linear":
            reader, error = constant_reader(self.fold_products_, self.fold_sums_, self.fold_counts_)
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
            count=self.count,
            center=self.center,
        )


def _spectrum_of_rows(activations: Activations, folds: Tensor, center: str) -> LayerSpectrum:
    """The spectrum from the factors: for n < d, with n x n decompositions only."""
    rows = activations if center == "off" else activations.centered()
    count = rows.neutral.shape[0]
    # H0ᵀ = Q R0 and H±ᵀ = Q± R±, so that Ω± = Q (R0 R±ᵀ / n) Q±ᵀ: the core has the left singular vectors.
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
    """Left singular vectors and values above rounding, with signs that do not depend on the solver."""
    vectors, values, _ = torch.linalg.svd(matrix, full_matrices=False)
    rounding = max(matrix.shape) * torch.finfo(matrix.dtype).eps * values[:1]
    rank = int((values > rounding).sum())
    return _canonical_signs(vectors[:, :rank]), values[:rank]


def _canonical_signs(vectors: Tensor) -> Tensor:
    """Columns with their entry of largest magnitude made positive."""
    if vectors.shape[1] == 0:
        return vectors
    largest = vectors.gather(0, vectors.abs().argmax(dim=0, keepdim=True))
    return vectors * torch.where(largest < 0, -1.0, 1.0).to(vectors.dtype)
