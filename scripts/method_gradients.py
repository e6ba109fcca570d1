"""The gradients of single demonstrations, and whether they have a direction in common, for `benchmark_methods`.

To first order a bias b gains b·gᵢ on the margin of demonstration i, and ½ bᵀFb is its KL from the base. So the gain at
a KL can be computed for demonstrations that b was not fitted on, without running the model again.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from sea_export.capture.gradients import OutputGradients, read_gradients
from sea_export.demonstrations.demonstration import Demonstration
from sea_export.demonstrations.tokenize import tokenize
from sea_export.fitting.collect_gradients import margin_texts
from sea_export.fitting.gradient_statistics import GradientStatistics
from sea_export.fitting.natural_gradient import natural_biases
from sea_export.model.architecture import context_length, find_output_projections
from sea_export.model.targets import Target
from sea_export.options import FitOptions

_BATCH_TOKENS = 512
_FOLDS = 5
_DRAWS = 200


def demonstration_gradients(
    model: Any,
    tokenizer: Any,
    demonstrations: Sequence[Demonstration],
    targets: Sequence[Target],
    options: FitOptions,
) -> dict[Target, Tensor]:
    """For every target (demonstrations, d) float32: ∂m/∂b of each demonstration's margin m.

    Args:
        model: the base.
        tokenizer: its tokenizer.
        demonstrations: at least one.
        targets: where b is added.
        options: `template` is used.
    """
    tokenized = tokenize(
        demonstrations, tokenizer, template=options.template, context_length=context_length(model.config)
    )
    count = len(tokenized)
    texts = [replace(text, weights=[count * weight for weight in text.weights]) for text in margin_texts(tokenized)]
    found: dict[Target, Tensor] = {}

    def add(target: Target, read: OutputGradients) -> None:
        of_texts = read.gradients.sum(1).cpu()
        gradients = found.setdefault(target, torch.zeros(count, of_texts.shape[-1]))
        gradients.index_add_(0, torch.tensor(read.texts), of_texts)

    read_gradients(model, texts, find_output_projections(model, targets), add, batch_tokens=_BATCH_TOKENS)
    return {target: found[target] for target in targets}


def label_signs(count: int, seed: int) -> Tensor:
    """(count,) float64: -1 for a random half of the demonstrations, whose completions change places, else 1."""
    signs = torch.ones(count, dtype=torch.float64)
    signs[random.Random(seed).sample(range(count), count // 2)] = -1
    return signs


@dataclass(frozen=True)
class Gain:
    """First-order gains of the margin at a KL, in nats per token, on demonstrations that a bias was not fitted on."""

    mean: float
    standard_error: float
    """Over the demonstrations."""
    shuffled: tuple[float, ...]
    """The means of fits with shuffled labels: what chance alone gives or takes."""

    @property
    def as_much(self) -> float:
        """The share of the fits with shuffled labels that gain at least as much, as a permutation test counts it."""
        return (1 + sum(one >= self.mean for one in self.shuffled)) / (1 + len(self.shuffled))


LEFT_OUT = "left out of the fit"


def agreement(
    statistics: Mapping[Target, GradientStatistics],
    gradients: Mapping[Target, Tensor],
    others: Mapping[str, Mapping[Target, Tensor]],
    kl: float,
) -> dict[str, Gain]:
    """Whether demonstrations have a direction in common: what a natural-gradient bias gains on others.

    Half of the samples of F make the step, and the other half measure its KL.

    Args:
        statistics: with samples of F.
        gradients: of each demonstration, (demonstrations, d), at the same targets.
        others: the same of other demonstrations, none of which is in `gradients`, by what they are.
        kl: in nats per token.

    Returns:
        For `LEFT_OUT` the gain on each fifth of the demonstrations of the fit on the other four fifths, and for every
        one of `others` that of the fit on all demonstrations.
    """
    sizes = [one.samples.shape[1] for one in statistics.values()]
    samples = torch.cat([one.samples for one in statistics.values()], dim=1)
    halves = {target: replace(one, samples=one.samples[::2]) for target, one in statistics.items()}

    def table(own: Mapping[Target, Tensor]) -> Tensor:
        return torch.cat([own[target] for target in statistics], dim=1).double()

    def step(gradient: Tensor) -> Tensor:
        parts = dict(zip(statistics, gradient.split(sizes), strict=True))
        biases = natural_biases({target: replace(one, gradient=parts[target]) for target, one in halves.items()})
        bias = torch.cat(list(biases.values()))
        return bias * (kl / (0.5 * (samples[1::2] @ bias).square().mean())).sqrt()

    fitted = table(gradients)
    folds = tuple(_folds(len(fitted)))
    signs = [label_signs(len(fitted), seed) for seed in range(_DRAWS)]

    def of_folds(signs: Tensor) -> Tensor:
        signed = signs[:, None] * fitted
        # The labels of those that are left out stay as they are.
        return torch.cat([fitted[fold] @ step(signed[rest].mean(0)) for fold, rest in folds])

    every = step(fitted.mean(0))
    shuffled = [step(draw @ fitted / len(draw)) for draw in signs]
    found = {LEFT_OUT: _gain(of_folds(torch.ones(len(fitted)).double()), [of_folds(draw) for draw in signs])}
    for name, own in others.items():
        found[name] = _gain(table(own) @ every, [table(own) @ bias for bias in shuffled])
    return found


def _gain(gains: Tensor, shuffled: Sequence[Tensor]) -> Gain:
    error = gains.std() / len(gains) ** 0.5
    return Gain(float(gains.mean()), float(error), tuple(float(one.mean()) for one in shuffled))


def _folds(count: int, seed: int = 0) -> Iterator[tuple[list[int], list[int]]]:
    """Members of a random fifth and of the rest, for each fifth."""
    order = random.Random(seed).sample(range(count), count)
    for fold in range(_FOLDS):
        yield order[fold::_FOLDS], [one for place, one in enumerate(order) if place % _FOLDS != fold]
