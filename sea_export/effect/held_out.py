"""The effect of an edit on demonstrations that took no part in its fit.

On each of them both completions are scored, before and after the edit. The margin is
log p(positive) / |positive| - log p(negative) / |negative|, with lengths in tokens; a demonstration is preferred where
the margin is above 0.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sea_export.capture.batching import PromptedCompletions
from sea_export.demonstrations.demonstration import Demonstration
from sea_export.demonstrations.tokenize import TokenizedDemonstration
from sea_export.edit.spectral_edit import SpectralEdit
from sea_export.evaluation.metrics import Metric, mean_metric
from sea_export.evaluation.scoring import completion_log_likelihoods
from sea_export.evaluation.statistics import Interval, metric_differences

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["FEWEST", "HeldOutEffect", "held_out_effect", "hold_out"]

FEWEST = 8
"""With fewer demonstrations held out, nothing is measured: the intervals would say nothing."""
_MOST = 200


@dataclass(frozen=True)
class HeldOutEffect:
    """What an edit changes on held-out demonstrations. Intervals are of 95 %, paired."""

    count: int
    before: tuple[Metric, ...]
    after: tuple[Metric, ...]
    differences: tuple[Interval, ...]

    @property
    def is_measurable(self) -> bool:
        """Whether the interval of the mean margin's change is above 0."""
        return self.differences[-1].low > 0


def hold_out(
    demonstrations: Sequence[Demonstration], share: float, seed: int
) -> tuple[tuple[Demonstration, ...], tuple[Demonstration, ...]]:
    """Splits demonstrations into those of the fit and those that are held out.

    Where they have kinds, whole kinds are held out, so that the effect is measured on another kind than was fitted:
    the smallest ones, until the share is reached. Otherwise a seeded sample is.

    Args:
        demonstrations: all of them.
        share: the share to hold out, in [0, 1); of at most 200 demonstrations.
        seed: of the sample.

    Returns:
        Both parts, in the order of the whole. The second one is empty if too few would be held out to measure anything.
    """
    wanted = min(_MOST, round(share * len(demonstrations)))
    if wanted < FEWEST:
        return tuple(demonstrations), ()
    kinds = sorted({one.kind for one in demonstrations}, key=lambda kind: (_size(demonstrations, kind), kind))
    held: set[int] = set()
    if len(kinds) > 1:
        for kind in kinds[:-1]:
            if len(held) < wanted:
                held.update(index for index, one in enumerate(demonstrations) if one.kind == kind)
    else:
        held.update(range(len(demonstrations)))
    if len(held) > wanted:
        held = set(random.Random(seed).sample(sorted(held), wanted))
    left_out = {demonstrations[index].kind for index in held} if len(kinds) > 1 else set()
    fitted = [one for index, one in enumerate(demonstrations) if index not in held and one.kind not in left_out]
    return tuple(fitted), tuple(demonstrations[index] for index in sorted(held))


def _size(demonstrations: Sequence[Demonstration], kind: str) -> int:
    return sum(one.kind == kind for one in demonstrations)


def held_out_effect(
    model: PreTrainedModel,
    demonstrations: Sequence[TokenizedDemonstration],
    edit: SpectralEdit,
    *,
    batch_tokens: int = 2048,
    progress: Callable[[int], None] | None = None,
) -> HeldOutEffect:
    """Scores held-out demonstrations before and after an edit.

    Args:
        model: the base. The edit is applied to it and removed again.
        demonstrations: at least `FEWEST`, tokenized.
        edit: the edit.
        batch_tokens: about how many tokens a forward pass computes.
        progress: told the number of demonstrations that a batch has finished; each counts twice.
    """
    before = _metrics(model, demonstrations, None, batch_tokens, progress)
    after = _metrics(model, demonstrations, edit, batch_tokens, progress)
    return HeldOutEffect(len(demonstrations), before, after, tuple(metric_differences(after, before)))


def _metrics(
    model: PreTrainedModel,
    demonstrations: Sequence[TokenizedDemonstration],
    edit: SpectralEdit | None,
    batch_tokens: int,
    progress: Callable[[int], None] | None,
) -> tuple[Metric, ...]:
    items = [PromptedCompletions(one.prompt, (one.positive, one.negative)) for one in demonstrations]
    with nullcontext() if edit is None else edit.apply(model):
        scores = completion_log_likelihoods(model, items, batch_tokens=batch_tokens, progress=progress)
    margins = [
        positive / len(one.positive) - negative / len(one.negative)
        for (positive, negative), one in zip(scores, demonstrations, strict=True)
    ]
    return (
        mean_metric("positive preferred per token", [float(margin > 0) for margin in margins]),
        mean_metric("positive preferred in all", [float(positive > negative) for positive, negative in scores]),
        mean_metric("mean margin per token", margins, best=float("inf"), unit="nats"),
    )
