"""Statistics of gradients at one target: of the margin of demonstrations, and of the log-likelihood of neutral text.

The margin of a demonstration is m = log p(positive) / |positive| - log p(negative) / |negative|, with lengths in
tokens. z is the output of the target, and b a bias that is added to it at every token of prompt and completion. All
sums are float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sea_export.capture.gradients import OutputGradients
from sea_export.fitting.linear_edit import OutputMoments

__all__ = [
    "FOLDS",
    "GradientStatistics",
    "MarginGradients",
    "MarginStatistics",
    "NeutralGradients",
    "NeutralStatistics",
]

FOLDS = 2
"""Texts are dealt out to so many folds."""


@dataclass(frozen=True)
class MarginStatistics:
    """What the demonstrations give at one target. Tensors are float64, on the CPU."""

    gradient: Tensor
    """See `GradientStatistics`."""
    map_gradient: Tensor | None
    """See `GradientStatistics`."""
    moments: OutputMoments
    """Of z, over the tokens of the demonstrations."""


@dataclass(frozen=True)
class NeutralStatistics:
    """What neutral text gives at one target. Tensors are float64, on the CPU."""

    samples: Tensor
    """See `GradientStatistics`."""
    curvature: Tensor | None
    """See `GradientStatistics`."""
    moments: OutputMoments
    """Of z, over the tokens of the text."""


@dataclass(frozen=True)
class GradientStatistics:
    """What gradient methods make the edit of one target from. Tensors are float64, on the CPU."""

    gradient: Tensor
    """(d,) g: the mean over demonstrations of ∂m/∂b."""
    map_gradient: Tensor | None
    """(d, d) G: the mean over demonstrations of Σ ∂m/∂z zᵀ over tokens; None if it was not asked for."""
    samples: Tensor
    """(s, d) f: gradients of a text's log-likelihood with respect to b, over the root of its tokens, for labels that
    are drawn from the model itself. s is 0 if they were not asked for."""
    curvature: Tensor | None
    """(d, d) Δ: the mean over tokens of (∂/∂z)(∂/∂z)ᵀ of the same log-likelihood; None if it was not asked for."""
    moments: OutputMoments
    """Of z, over the tokens of the demonstrations, or of neutral text where gradients of it are asked for."""

    @classmethod
    def of(cls, margin: MarginStatistics, neutral: NeutralStatistics | None) -> GradientStatistics:
        """Both parts together.

        Args:
            margin: of the demonstrations.
            neutral: of neutral text; None where it was not asked for.
        """
        if neutral is None:
            return cls(margin.gradient, margin.map_gradient, torch.zeros(0), None, margin.moments)
        return cls(margin.gradient, margin.map_gradient, neutral.samples, neutral.curvature, neutral.moments)

    @property
    def signature(self) -> float:
        """‖g‖: to first order, what a bias of length 1 gains at most."""
        return float(self.gradient.norm())


class MarginGradients:
    """Adds up g, G and the moments of z of one target."""

    def __init__(self, *, maps: bool) -> None:
        """Starts with nothing.

        Args:
            maps: whether G is asked for.
        """
        self._maps = maps
        self._gradient: Tensor | float = 0.0
        self._map_gradient: Tensor | float = 0.0
        self._outputs = _Outputs()

    def update(self, read: OutputGradients) -> None:
        """Adds the texts of a batch, whose objective is their part of the mean margin."""
        self._gradient = self._gradient + read.gradients.sum((0, 1), dtype=torch.float64).cpu()
        if self._maps:
            self._map_gradient = self._map_gradient + _product(read.gradients, read.outputs)
        self._outputs.add(read)

    def finish(self) -> MarginStatistics:
        """The sums of all batches, of which there was at least one."""
        assert isinstance(self._gradient, Tensor)
        map_gradient = self._map_gradient if isinstance(self._map_gradient, Tensor) else None
        return MarginStatistics(self._gradient, map_gradient, self._outputs.moments())


class NeutralGradients:
    """Adds up f, Δ and the moments of z of one target."""

    def __init__(self, scored_tokens: Sequence[int], *, maps: bool) -> None:
        """Starts with nothing.

        Args:
            scored_tokens: of each text, how many tokens are scored.
            maps: whether Δ is asked for.
        """
        self._roots = torch.tensor(scored_tokens).sqrt()
        self._maps = maps
        self._samples = torch.zeros(0)
        self._curvature: Tensor | float = 0.0
        self._outputs = _Outputs()

    def update(self, read: OutputGradients) -> None:
        """Adds the texts of a batch, whose objective is their log-likelihood over the root of their scored tokens."""
        if not self._samples.numel():
            size = read.gradients.shape[-1]
            self._samples = torch.zeros(len(self._roots), size, dtype=torch.float64)
        self._outputs.add(read)
        self._samples[list(read.texts)] = read.gradients.sum(1, dtype=torch.float64).cpu()
        if self._maps:
            unscaled = read.gradients * self._roots[list(read.texts)].to(read.gradients)[:, None, None]
            self._curvature = self._curvature + _product(unscaled, unscaled)

    def finish(self) -> NeutralStatistics:
        """The samples and means of all batches, of which there was at least one."""
        moments = self._outputs.moments()
        curvature = self._curvature / moments.counts.sum() if isinstance(self._curvature, Tensor) else None
        return NeutralStatistics(self._samples, curvature, moments)


class _Outputs:
    """Adds up the moments of z."""

    def __init__(self) -> None:
        self._products = self._sums = torch.zeros(0)
        self._counts = torch.zeros(FOLDS, dtype=torch.float64)

    def add(self, read: OutputGradients) -> None:
        """Adds the outputs of a batch."""
        if not self._products.numel():
            size = read.outputs.shape[-1]
            self._products = torch.zeros(FOLDS, size, size, dtype=torch.float64)
            self._sums = torch.zeros(FOLDS, size, dtype=torch.float64)
        for fold in range(FOLDS):
            members = [row for row, text in enumerate(read.texts) if text % FOLDS == fold]
            outputs = read.outputs[members][read.mask[members]]
            self._products[fold] += _product(outputs, outputs)
            self._sums[fold] += outputs.sum(0, dtype=torch.float64).cpu()
            self._counts[fold] += len(outputs)

    def moments(self) -> OutputMoments:
        return OutputMoments(self._products, self._sums, self._counts)


def _product(one: Tensor, other: Tensor) -> Tensor:
    """(d, d) Σ x yᵀ over rows (..., d): a batch in float32, and float64 outside."""
    return (one.flatten(0, -2).T @ other.flatten(0, -2)).double().cpu()
