"""The damage of an edit: its KL from the base, on prose and on the base's own answers to ordinary questions.

`benchmark_methods` solves for the strength at which the larger of the two is a budget.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from sea_export.capture.batching import PromptedCompletions
from sea_export.edit.spectral_edit import SpectralEdit
from sea_export.effect.strength import strength_by_secants
from sea_export.errors import SeaExportError
from sea_export.evaluation.divergence import BATCH_TOKENS, PredictionObserver, compared
from sea_export.evaluation.repeated_scoring import RepeatedScorer

_FOUR = 4
# The share of the budget that is close enough, and what is aimed at.
_LOWEST, _AIM = 0.95, 0.975
_REFINEMENTS = 5


@dataclass(frozen=True)
class Divergence:
    """How far an edit is from the base on some texts."""

    kl: float
    """Mean KL from the base, in nats per token."""
    agreement: float
    """Share of the tokens at which both have the same likeliest token."""


class RepeatedDivergence:
    """The divergence of many edits on the same texts, computed from the first edited layer on."""

    def __init__(self, model: Any, items: Sequence[PromptedCompletions], starts: Collection[int]) -> None:
        """Runs the base once.

        Args:
            model: the base.
            items: texts, each a prompt with one completion.
            starts: the lowest edited layers of the edits to come.
        """
        # The logits of a batch are in memory at once, so that each batch has a scorer of its own.
        self._batches = [RepeatedScorer(model, batch, starts, batch_tokens=BATCH_TOKENS) for batch in _batches(items)]

    def __call__(self, edit: SpectralEdit, *, whole: bool) -> Divergence:
        """The divergence of an edit, on every fourth batch or on the whole."""
        kl, agreeing, tokens = 0.0, 0.0, 0
        for scorer in self._batches if whole else self._batches[::_FOUR]:
            base, edited = _log_probabilities(scorer, None), _log_probabilities(scorer, edit)
            for index, before in base.items():
                own_kl, own_agreeing = compared(before, edited[index])
                kl, agreeing, tokens = kl + own_kl, agreeing + own_agreeing, tokens + len(before)
        return Divergence(kl / tokens, agreeing / tokens)


def _batches(items: Sequence[PromptedCompletions]) -> list[list[PromptedCompletions]]:
    """Texts of about equal length together, with at most `BATCH_TOKENS` tokens."""
    ordered = sorted(items, key=lambda item: len(item.prompt) + len(item.completions[0]), reverse=True)
    batches: list[list[PromptedCompletions]] = [[]]
    tokens = 0
    for item in ordered:
        length = len(item.prompt) + len(item.completions[0])
        if batches[-1] and tokens + length > BATCH_TOKENS:
            batches.append([])
            tokens = 0
        batches[-1].append(item)
        tokens += length
    return batches


def _log_probabilities(scorer: RepeatedScorer, edit: SpectralEdit | None) -> dict[int, Tensor]:
    """For each text (tokens, vocabulary) float32."""
    found: dict[int, Tensor] = {}
    scorer.observe(PredictionObserver(found.__setitem__), edit)
    return found


def solve(
    budget: float, edit_at: Callable[[float], SpectralEdit], damage: Mapping[str, RepeatedDivergence], start: float
) -> tuple[float, dict[str, Divergence], int]:
    """The strength at which the largest divergence is a budget, to 5 % of it.

    Args:
        budget: in nats per token.
        edit_at: makes the edit of a strength.
        damage: the kinds of text.
        start: the first strength that is tried.

    Returns:
        The strength, the divergence on each kind of text, and the number of steps.

    Raises:
        SeaExportError: there is no such strength.
    """
    found: dict[str, Divergence] = {}

    def divergence(strength: float, whole: bool) -> float:
        edit = edit_at(strength)
        found.update({name: one(edit, whole=whole) for name, one in damage.items()})
        return max(one.kl for one in found.values())

    steps = strength_by_secants(budget, divergence, start)
    strength, largest, count = steps[-1].strength, steps[-1].kl, len(steps)
    for _ in range(_REFINEMENTS):
        if _LOWEST * budget <= largest <= budget:
            return strength, found, count
        strength *= (_AIM * budget / largest) ** 0.5
        largest, count = divergence(strength, True), count + 1
    raise SeaExportError(f"KL: no strength with a KL within 5 % of {budget:g} was found. Give another --kl.")


def first_strength(edit: SpectralEdit, budget: float) -> float:
    """A strength to begin with: the largest change of any layer is about the root of the budget.

    Args:
        edit: the edit at strength 1.
        budget: in nats per token.
    """
    return float(budget**0.5 / max(edit.relative_change, 1e-6))
