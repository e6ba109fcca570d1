"""Statistics of the activations of one target, added up batch by batch.

All vectors are rows; n counts demonstrations and d is the hidden size. Sums are float64.
"""

from __future__ import annotations

import copy
from enum import Enum
from typing import TypeVar

import torch
from torch import Tensor

from sea_export.capture.activations import Activations
from sea_export.edit.features import FeatureFunction
from sea_export.errors import InputError

__all__ = ["FOLDS", "ActivationStatistics", "Moments", "Statistic", "fold_moments"]

FOLDS = 5
"""Demonstrations are dealt out to so many folds, one after the other, for what is chosen by cross-validation."""


class Statistic(Enum):
    """What can be collected of the activations of a target. An edit method names what it needs."""

    SAMPLES = "samples"
    """The neutral activations themselves, and the means of the positive and of the negative ones, not mapped by φ."""
    MOMENTS = "moments"
    """In each fold, over neutral, positive and negative activations h together: Σ h and Σ h hᵀ."""
    CROSS_MOMENTS = "cross-moments"
    """Σ h0, Σ h+ and Σ h-, and of neutral activations with each kind: Σ h0 h0ᵀ, Σ h0 h+ᵀ and Σ h0 h-ᵀ."""
    MARGIN_GRADIENTS = "gradients of the margin"
    """Gradients of the margin of demonstrations: see `sea_export.fitting.gradient_statistics`."""
    NEUTRAL_GRADIENTS = "gradients of neutral text"
    """The same of the log-likelihood of neutral text, for labels that are drawn from the model itself."""


_Self = TypeVar("_Self", bound="ActivationStatistics")


class ActivationStatistics:
    """Accumulates the activations of one target.

    Activations are kept as rows while they take less memory than d x d moments would, and are added to the moments
    beyond that. So memory is bounded by the hidden size, not by the number of demonstrations, and no d x d matrix is
    formed while n < d.
    """

    def __init__(self, needs: frozenset[Statistic], *, centered: bool, feature: FeatureFunction) -> None:
        """Starts with no demonstrations.

        Args:
            needs: the statistics to collect.
            centered: whether the cross-moments are about the means of the activations.
            feature: φ, by which activations are mapped before moments are taken.
        """
        self.needs, self.centered, self.feature = needs, centered, feature
        self.count = 0
        """The number of demonstrations n so far."""
        self._neutral: list[Tensor] = []
        self._completion_sums: Tensor | float = 0.0
        self._rows: list[Tensor] = []
        self._folds: list[Tensor] = []
        self._buffered = 0
        self._moments: Moments | None = None

    def update(self: _Self, activations: Activations) -> _Self:
        """Adds the activations of some demonstrations and returns the object itself.

        Args:
            activations: neutral, positive and negative rows, each (batch, d), of any floating dtype.

        Raises:
            InputError: the three shapes differ from one another, or a value is not finite. The caller knows the target,
                and puts its name in front of the message.
        """
        kinds = (activations.neutral, activations.positive, activations.negative)
        shapes = [tuple(kind.shape) for kind in kinds]
        if len(set(shapes)) > 1:
            raise InputError(f"neutral, positive and negative activations differ in shape: {shapes}.")
        rows = torch.stack(kinds)
        if not torch.isfinite(rows).all():
            raise InputError("activations: one is NaN or infinite. Load the model in float32 (--dtype float32).")
        if Statistic.SAMPLES in self.needs:
            self._neutral.append(rows[0].clone())
            self._completion_sums = self._completion_sums + rows[1:].sum(dim=1, dtype=torch.float64)
        self._rows.append(rows)
        self._folds.append((torch.arange(rows.shape[1], device=rows.device) + self.count) % FOLDS)
        self._buffered += rows.shape[1]
        self.count += rows.shape[1]
        self._form_moments_if_many()
        return self

    def merge(self: _Self, other: _Self) -> _Self:
        """Adds everything that another object of the same settings has seen, and returns the object itself.

        The result is, to rounding, that of one object which has seen everything, if the other has been given whole
        rounds of `FOLDS` demonstrations, or the last ones.

        Args:
            other: it must not be used any more.
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
        self._form_moments_if_many()
        return self

    def to(self: _Self, device: torch.device) -> _Self:
        """An object that has seen the same, with its tensors on `device`."""
        moved = copy.copy(self)
        moved._neutral, moved._rows, moved._folds = (
            [tensor.to(device) for tensor in tensors] for tensors in (self._neutral, self._rows, self._folds)
        )
        if isinstance(self._completion_sums, Tensor):
            moved._completion_sums = self._completion_sums.to(device)
        moved._moments = None if self._moments is None else self._moments.to(device)
        return moved

    def rows(self) -> tuple[Tensor, Tensor] | None:
        """All activations and their folds, if there are fewer demonstrations than features and none is in moments.

        Returns:
            (3, n, d) float64 neutral, positive and negative activations, mapped by φ, and (n,) the fold of each
            demonstration; or None.
        """
        if self._moments is None and self._buffered < self._rows[0].shape[2]:
            return self._features(), torch.cat(self._folds)
        return None

    def moments(self) -> Moments:
        """The moments of all activations. At least one demonstration was seen."""
        self._form_moments()
        assert self._moments is not None
        return self._moments

    def neutral_samples(self) -> Tensor:
        """(n, d) float64: the neutral activations, not mapped by φ. `Statistic.SAMPLES` must be among the needs."""
        return torch.cat(self._neutral).to(torch.float64)

    def completion_means(self) -> Tensor:
        """(2, d) float64: the mean positive and negative activation, not mapped by φ. It needs `Statistic.SAMPLES`."""
        assert isinstance(self._completion_sums, Tensor)
        return self._completion_sums / self.count

    def _features(self) -> Tensor:
        """(3, n, d) float64: the rows that are not in the moments yet, mapped by φ."""
        return self.feature.forward(torch.cat(self._rows, dim=1).to(torch.float64))

    def _form_moments_if_many(self) -> None:
        if self._rows and self._buffered >= Moments.matrices(self.needs) * self._rows[0].shape[2]:
            self._form_moments()

    def _form_moments(self) -> None:
        if not self._rows:
            return
        rows = self._features()
        if self._moments is None:
            self._moments = Moments(rows, self.needs, centered=self.centered)
        self._moments.update(rows, torch.cat(self._folds))
        self._rows, self._folds, self._buffered = [], [], 0


class Moments:
    """First and second moments of (3, batch, d) rows, about a pilot mean so that centring cancels little."""

    def __init__(self, rows: Tensor, needs: frozenset[Statistic], *, centered: bool) -> None:
        """Starts with no rows.

        Args:
            rows: (3, batch, d) float64 rows from which the pilot mean is taken.
            needs: with `Statistic.MOMENTS`, the moments of each fold are kept too.
            centered: whether covariances are about the means.
        """
        size = rows.shape[2]
        self.by_fold, self.centered = Statistic.MOMENTS in needs, centered
        self.count = 0
        """The number of demonstrations n."""
        self.pilot = rows.mean(dim=1) if centered else rows.new_zeros(3, size)
        self.sums_ = rows.new_zeros(3, size)
        self.products_ = rows.new_zeros(3, size, size)
        """Products of the neutral rows with themselves, the positive and the negative ones."""
        if self.by_fold:
            self.fold_products_ = rows.new_zeros(FOLDS, size, size)
            self.fold_sums_ = rows.new_zeros(FOLDS, size)
            self.fold_counts_ = rows.new_zeros(FOLDS)

    @staticmethod
    def matrices(needs: frozenset[Statistic]) -> int:
        """How many d x d matrices the moments hold."""
        return 3 + (FOLDS if Statistic.MOMENTS in needs else 0)

    def means(self) -> Tensor:
        """(3, d): the mean neutral, positive and negative row."""
        return self.sums_ / self.count + self.pilot

    def covariances(self) -> Tensor:
        """(3, d, d): H0ᵀH0 / n, H0ᵀH+ / n and H0ᵀH- / n, of centred rows if the moments are centred."""
        covariances = self.products_ / self.count
        if self.centered:
            shifted_means = self.sums_ / self.count
            covariances = covariances - shifted_means[0][None, :, None] * shifted_means[:, None, :]
        return covariances

    def update(self, rows: Tensor, folds: Tensor) -> None:
        """Adds rows.

        Args:
            rows: (3, batch, d) float64 neutral, positive and negative rows.
            folds: (batch,) the fold of each demonstration.
        """
        shifted = rows - self.pilot[:, None]
        self.sums_ += shifted.sum(dim=1)
        self.products_ += shifted[0].T @ shifted
        if self.by_fold:
            products, sums, counts = fold_moments(rows, folds)
            self.fold_products_ += products
            self.fold_sums_ += sums
            self.fold_counts_ += counts
        self.count += rows.shape[1]

    def to(self, device: torch.device) -> Moments:
        """The same moments with their tensors on `device`."""
        moved = copy.copy(self)
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(moved, name, value.to(device))
        return moved

    def add(self, other: Moments) -> None:
        """Adds moments that were taken about another pilot: Σ (x - p)(y - q)ᵀ from Σ (x - p')(y - q')ᵀ."""
        shifts = other.pilot - self.pilot
        self.products_ += (
            other.products_
            + other.sums_[0][None, :, None] * shifts[:, None, :]
            + shifts[0][None, :, None] * other.sums_[:, None, :]
            + other.count * shifts[0][None, :, None] * shifts[:, None, :]
        )
        self.sums_ += other.sums_ + other.count * shifts
        if self.by_fold:
            self.fold_products_ += other.fold_products_
            self.fold_sums_ += other.fold_sums_
            self.fold_counts_ += other.fold_counts_
        self.count += other.count


def fold_moments(rows: Tensor, folds: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Moments of each fold, over all kinds of rows together.

    Args:
        rows: (3, n, d) neutral, positive and negative rows.
        folds: (n,) the fold of each demonstration.

    Returns:
        Σ h hᵀ (folds, d, d), Σ h (folds, d) and the number of h (folds,).
    """
    products, sums, counts = [], [], []
    for fold in range(FOLDS):
        members = rows[:, folds == fold].flatten(0, 1)
        products.append(members.T @ members)
        sums.append(members.sum(dim=0))
        counts.append(members.shape[0])
    return (
        torch.stack(products),
        torch.stack(sums),
        torch.tensor(counts, dtype=rows.dtype, device=rows.device),
    )
