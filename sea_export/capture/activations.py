"""Activations of one target over the demonstrations: neutral, positive and negative, one row each."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

__all__ = ["Activations"]


@dataclass(frozen=True)
class Activations:
    """Activations of one edited place over the demonstrations, one row each."""

    neutral: Tensor
    """(n, d): the prompt alone, H0."""
    positive: Tensor
    """(n, d): the prompt followed by the positive completion, H+."""
    negative: Tensor
    """(n, d): the prompt followed by the negative completion, H-."""

    def centered(self) -> Activations:
        """The same activations, each kind less its own mean over the demonstrations."""
        return Activations(*(rows - rows.mean(dim=0) for rows in (self.neutral, self.positive, self.negative)))
