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
_DRAWS = 40


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
    texts = [replace(text, weight=text.weight * count) for text in margin_texts(tokenized)]
    found: dict[Target, Tensor] = {}

    def add(target: Target, read: OutputGradients) -> None:
        of_texts = read.gradients.sum(1).cpu()
        gradients = found.setdefault(target, torch.zeros(count, of_texts.shape[-1]))
        # Each demonstration has two texts, which may be of one batch.
        gradients.index_add_(0, torch.tensor([text // 2 for text in read.texts]), of_texts)

    read_gradients(model, texts, find_output_projections(model, targets), add, batch_tokens=_BATCH_TOKENS)
    return {target: found[target] for target in targets}


def label_signs(count: int, seed: int) -> Tensor:
    """(count,) float64: -1 for a random half of the demonstrations, whose completions change places, else 1."""
    signs = torch.ones(count, dtype=torch.float64)
    signs[random.Random(seed).sample(range(count), count // 2)] = -1
    return signs


@dataclass(frozen=True)
class Agreement:
    """First-order gains of the margin at a KL, in nats per token."""

    fitted: float
    """On the demonstrations that the bias was fitted on."""
    left_out: float
    """On demonstrations that it was not fitted on."""
    standard_error: float
    """Of `left_out`."""
    shuffled: float
    """The standard deviation of the gain of fits with shuffled labels: what chance alone gives or takes."""


def agreement(
    statistics: Mapping[Target, GradientStatistics], gradients: Mapping[Target, Tensor], kl: float
) -> Agreement:
    """Whether demonstrations have a direction in common: what a natural-gradient bias gains on those it has not seen.

    Half of the samples of F make the step, and the other half measure its KL.

    Args:
        statistics: with samples of F.
        gradients: of each demonstration, (demonstrations, d), at the same targets.
        kl: in nats per token.
    """
    table = torch.cat([gradients[target] for target in statistics], dim=1).double()
    samples = torch.cat([one.samples for one in statistics.values()], dim=1)
    halves = {target: replace(one, samples=one.samples[::2]) for target, one in statistics.items()}
    sizes = [one.samples.shape[1] for one in statistics.values()]

    def step(gradient: Tensor) -> Tensor:
        parts = dict(zip(statistics, gradient.split(sizes), strict=True))
        biases = natural_biases({target: replace(one, gradient=parts[target]) for target, one in halves.items()})
        bias = torch.cat(list(biases.values()))
        return bias * (kl / (0.5 * (samples[1::2] @ bias).square().mean())).sqrt()

    everything = step(table.mean(0))
    left_out = torch.cat([table[fold] @ step(table[rest].mean(0)) for fold, rest in _folds(len(table))])
    shuffled = []
    for seed in range(_DRAWS):
        # On other demonstrations than those of the fit, which have labels of their own.
        (fold, rest), *_ = _folds(len(table), seed)
        shuffled.append((table[fold] @ step(label_signs(len(rest), seed) @ table[rest] / len(rest))).mean())
    return Agreement(
        float((table @ everything).mean()),
        float(left_out.mean()),
        float(left_out.std() / len(left_out) ** 0.5),
        float(torch.stack(shuffled).std()),
    )


def _folds(count: int, seed: int = 0) -> Iterator[tuple[list[int], list[int]]]:
    """Members of a random fifth and of the rest, for each fifth."""
    order = random.Random(seed).sample(range(count), count)
    for fold in range(_FOLDS):
        yield order[fold::_FOLDS], [one for place, one in enumerate(order) if place % _FOLDS != fold]
