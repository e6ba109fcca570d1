"""What is wrong with demonstrations, as far as the activations of a model show it.

D is the difference of the activations of the positive and the negative completion, one row a demonstration. What the
methods fit is about its mean.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sea_export.capture.activations import Activations
from sea_export.demonstrations.findings import Finding

__all__ = ["activation_findings", "share_of_length"]

_FEWEST = 20
_PARTS = 5
_LARGEST_SHARE = 0.5
# The largest norm, in standard deviations above the median.
_LARGEST_NORM = 8.0
# A row that was swapped is as far below zero as the others are above, and is known by that where nearly all are above.
_CLEAR = 2.0
_NORMAL = 1.4826
"""The standard deviation of normal numbers over the median of their distances from their median."""


def activation_findings(activations: Activations, lengths: Tensor, rows: Sequence[str], where: str) -> list[Finding]:
    """What the activations of n demonstrations show.

    Args:
        activations: those of n demonstrations.
        lengths: (n,) how many tokens the positive completion has more than the negative one.
        rows: n names of the demonstrations.
        where: the name of the target.
    """
    differences = (activations.positive - activations.negative).double()
    if len(rows) < _FEWEST:
        return []
    found = []
    share = share_of_length(differences, lengths)
    if share > _LARGEST_SHARE:
        found.append(
            Finding(
                "length in the activations",
                f"the lengths of the completions explain {share:.0%} of their mean difference ({where})",
                "An edit learns length from them. Write both sides equally long.",
            )
        )
    reversed_rows = _reversed(differences)
    if reversed_rows:
        found.append(
            Finding(
                "labels",
                f"{len(reversed_rows)} demonstrations differ in the opposite direction to the others ({where})",
                "Look whether positive and negative were swapped.",
                tuple(rows[row] for row in reversed_rows),
            )
        )
    far = _deviations(differences.norm(dim=1)) > _LARGEST_NORM
    if far.any():
        found.append(
            Finding(
                "outliers",
                f"{int(far.sum())} demonstrations differ far more than the others ({where})",
                "Look at them, and leave out those that are not meant: one of them may decide a direction.",
                tuple(rows[row] for row in far.nonzero().flatten().tolist()),
            )
        )
    return found


def share_of_length(differences: Tensor, lengths: Tensor) -> float:
    """How much of the mean difference goes away if completions were equally long, from 0 to 1.

    By least squares D = 1 aᵀ + l bᵀ: 1 - |a|² / |mean of D|², with l the differences of lengths.

    Args:
        differences: (n, d) D.
        lengths: (n,) l, in tokens.
    """
    lengths = lengths.to(differences)
    mean, deviation = differences.mean(dim=0), lengths - lengths.mean()
    if not deviation.any() or not mean.any():
        return 0.0
    slope = (deviation @ differences) / (deviation @ deviation)
    constant = mean - lengths.mean() * slope
    return min(max(0.0, 1 - float(constant @ constant / (mean @ mean))), 1.0)


def _reversed(differences: Tensor) -> list[int]:
    """Rows that point the other way than the mean of the others, if nearly all of those point one way."""
    count = len(differences)
    part = torch.arange(count) % _PARTS
    along = torch.empty(count, dtype=differences.dtype)
    for number in range(_PARTS):  # a row is judged by a mean that it is no part of
        mean = differences[part != number].mean(dim=0)
        along[part == number] = (differences[part == number] @ (mean / mean.norm().clamp_min(1e-300))).to(along)
    if along.median() < _CLEAR * _deviation(along):
        return []
    return (along < -along.median() / 2).nonzero().flatten().tolist()


def _deviations(values: Tensor) -> Tensor:
    """How many standard deviations each number is from their median."""
    return (values - values.median()) / _deviation(values).clamp_min(1e-300)


def _deviation(values: Tensor) -> Tensor:
    """The standard deviation of numbers, estimated so that outliers do not count."""
    return _NORMAL * (values - values.median()).abs().median()
