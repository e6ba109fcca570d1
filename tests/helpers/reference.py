"""The method once more, written as its definition reads: dense float64 matrices, no thought of cost.

Tests compare the package with this. Rows are activations. The module docstrings of `sea_export.fitting.spectrum` and
`sea_export.edit.layer_edit` give the symbols.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sea_export.capture.activations import Activations
from sea_export.edit.layer_edit import LayerEdit
from sea_export.options import EditOptions

READER_PENALTIES = [10.0**exponent for exponent in range(-8, 2)]
READER_FOLDS = 5


def random_activations(
    count: int, size: int, *, seed: int = 0, decay: float = 0.75, dtype: torch.dtype = torch.float64
) -> Activations:
    """Activations as models have them: a mean far from zero and directions of very unequal strength.

    The completions' activations are linear in the neutral ones, each kind in its own way, with some noise: what
    covaries with the positive and with the negative ones is not the same.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    strengths = decay ** torch.arange(size, dtype=torch.float64)
    neutral = normal(count, size) * strengths @ torch.linalg.qr(normal(size, size)).Q
    completions = []
    for _ in range(2):
        mixture = torch.linalg.qr(normal(size, size)).Q * strengths @ torch.linalg.qr(normal(size, size)).Q
        completions.append(neutral @ mixture + 0.1 * normal(count, size) * strengths)
    return Activations(*((rows + 0.3 * normal(size)).to(dtype) for rows in (neutral, *completions)))


def cross_covariance(neutral: Tensor, completion: Tensor, *, centered: bool) -> Tensor:
    """Ω = H0ᵀ H / n, (d, d), where H0 and H are less their means if centred."""
    neutral, completion = neutral.double(), completion.double()
    if centered:
        neutral, completion = neutral - neutral.mean(0), completion - completion.mean(0)
    return neutral.T @ completion / neutral.shape[0]


def left_singular(omega: Tensor) -> tuple[Tensor, Tensor]:
    """U (d, r) and σ (r,), r the numerical rank."""
    vectors, values, _ = torch.linalg.svd(omega)
    rank = int(torch.linalg.matrix_rank(omega))
    return vectors[:, :rank], values[:rank]


def rank_for_variance(values: Tensor, variance: float) -> int:
    """The smallest k with Σ_{i<=k} σ_i² / Σ σ_i² >= variance, by trying each."""
    for rank in range(len(values)):
        if values[:rank].square().sum() / values.square().sum() >= variance:
            return rank
    return len(values)


@dataclass(frozen=True)
class DenseEdit:
    """h ↦ M' h + constant + spread (uᵀh)."""

    matrix: Tensor
    """M' (d, d)."""
    constant: Tensor
    """(d,)"""
    spread: Tensor
    """(d,)"""
    reader: Tensor
    """u (d,)"""
    relative_change: float
    normalization: str = "none"

    def __call__(self, rows: Tensor) -> Tensor:
        """The edit of rows (n, d), in float64."""
        rows = rows.double()
        edited = rows @ self.matrix.T + self.constant + (rows @ self.reader)[..., None] * self.spread
        return with_norms_of(rows, edited, self.normalization)


def with_norms_of(rows: Tensor, edited: Tensor, normalization: str) -> Tensor:
    """The edited rows (n, d), each token or each feature of them with the norm that it had."""
    if normalization == "token":
        pairs = [(new, new.norm(), old.norm()) for old, new in zip(rows, edited, strict=True)]
        return torch.stack([new * (before / after) if after > 0 else new for new, after, before in pairs])
    if normalization == "sequence":
        return with_norms_of(rows.T, edited.T, "token").T
    return edited


def dense_edit(activations: Activations, center: str, options: EditOptions) -> DenseEdit:
    """M' = D (I + s (M - I)), M = P+ + P-, from activations."""
    size = activations.neutral.shape[1]
    identity = torch.eye(size, dtype=torch.float64)
    neutral = activations.neutral.double()
    mean = neutral.mean(0)

    def leading(completion: Tensor, rank: int | None, variance: float) -> Tensor:
        vectors, values = left_singular(cross_covariance(neutral, completion, centered=center != "off"))
        return vectors[:, : rank_for_variance(values, variance) if rank is None else rank]

    plus = leading(activations.positive, options.positive_rank, options.variance("positive"))
    minus = leading(activations.negative, options.negative_rank, options.variance("negative"))
    if options.projections == "reversed":
        plus, minus = minus, plus
    keep, drop = plus @ plus.T, identity - minus @ minus.T
    matrix = {"positive": keep, "negative": drop}.get(options.projections, keep + drop)
    matrix = identity + options.strength * (matrix - identity)

    calibration = neutral - mean if center != "off" else neutral
    if options.normalization == "average":
        matrix = matrix / 2**options.strength
    elif options.normalization == "calibrated":
        for feature in range(size):
            before = calibration[:, feature].norm()
            after = (calibration @ matrix.T)[:, feature].norm()
            if before > 1e-12 and after > 1e-12:
                matrix = torch.cat(
                    [matrix[:feature], (before / after) * matrix[feature : feature + 1], matrix[feature + 1 :]]
                )

    change = ((matrix - identity) @ calibration.T).norm() / neutral.norm()
    shift, zeros = (identity - matrix) @ mean, torch.zeros(size, dtype=torch.float64)
    constant = shift if center == "affine" else zeros
    spread, reader = (shift, constant_reader(activations)[0]) if center == "linear" else (zeros, zeros)
    normalization = options.normalization if options.normalization in ("token", "sequence") else "none"
    return DenseEdit(matrix, constant, spread, reader, float(change), normalization)


def constant_reader(activations: Activations) -> tuple[Tensor, float]:
    """The ridge solution u of uᵀh ≈ 1 and its held-out error, by refitting for each fold and penalty."""
    rows = np.stack(
        [kind.double().numpy() for kind in (activations.neutral, activations.positive, activations.negative)]
    )
    _, count, size = rows.shape
    scale = (rows**2).sum() / min(3 * count, size)
    folds = np.arange(count) % READER_FOLDS

    def ridge(some: np.ndarray, penalty: float) -> np.ndarray:
        """argmin ‖H u - 1‖² + penalty ‖u‖², as least squares with rows √penalty I."""
        stacked = some.reshape(-1, size)
        system = np.concatenate([stacked, np.sqrt(penalty) * np.eye(size)])
        wanted = np.concatenate([np.ones(len(stacked)), np.zeros(size)])
        return np.linalg.lstsq(system, wanted, rcond=None)[0]

    errors = []
    for penalty in READER_PENALTIES:
        residuals = [
            rows[:, folds == fold] @ ridge(rows[:, folds != fold], scale * penalty) - 1
            for fold in range(min(READER_FOLDS, count))
        ]
        errors.append(np.sqrt(np.mean(np.concatenate([residual.ravel() for residual in residuals]) ** 2)))
    best = int(np.argmin(errors))
    return torch.from_numpy(ridge(rows, scale * READER_PENALTIES[best])), float(errors[best])


def dense_of(edit: LayerEdit) -> DenseEdit:
    """The dense form of a fitted edit: its float32 factors, multiplied out in float64."""
    plus, minus = edit.positive.double(), edit.negative.double()
    identity = torch.eye(edit.size, dtype=torch.float64)
    matrix = edit.identity * identity + edit.strength * (plus @ plus.T - minus @ minus.T)
    if edit.scale is not None:
        matrix = torch.diag(edit.scale.double()) @ matrix
    zeros = torch.zeros(edit.size, dtype=torch.float64)
    shift = zeros if edit.shift is None else edit.shift.double()
    if edit.reader is None:
        return DenseEdit(matrix, shift, zeros, zeros, edit.relative_change, edit.normalization)
    return DenseEdit(matrix, zeros, shift, edit.reader.double(), edit.relative_change, edit.normalization)
