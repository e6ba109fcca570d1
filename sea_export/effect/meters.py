"""What measures edits of a base: one that has the base in memory as a whole, and one that reads it layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from sea_export.capture.batching import PromptedCompletions
from sea_export.capture.offloaded import StoredModel
from sea_export.demonstrations.neutral_text import ordinary_questions
from sea_export.edit.spectral_edit import SpectralEdit
from sea_export.effect.scored_by_layer import predict_by_layer
from sea_export.effect.strength import StrengthStep, strength_by_grids, strength_by_secants
from sea_export.evaluation.benchmark import Measurement, Progress, measure
from sea_export.evaluation.demonstration_margins import DemonstrationMargins
from sea_export.evaluation.divergence import Divergence, RepeatedDivergence, compared, divergence_of, joined
from sea_export.evaluation.unrelated_text import UnrelatedText, prose_items, unrelated_text
from sea_export.fitting.fit import Fit
from sea_export.model.architecture import OutputProjection

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["LayerMeter", "Meter", "WholeMeter"]

# Counted tokens of either kind of text: of the first steps of a search, and of its result.
_PART_TOKENS, _WHOLE_TOKENS = 800, 6000
# Layer by layer several edits are measured in a pass, so that each has fewer tokens.
_LAYERWISE_TOKENS = 2000


class Meter(Protocol):
    """Measures edits of one base."""

    def search(self, fit: Fit, budget: float, start: float) -> tuple[tuple[StrengthStep, ...], Divergence]:
        """Searches the largest strength within a budget: see `sea_export.effect.strength`.

        Args:
            fit: the fit.
            budget: the largest mean KL, in nats per token.
            start: the first strength that is tried.

        Returns:
            All steps, and the divergence at the last one.
        """

    def damage(self, edit: SpectralEdit) -> Divergence:
        """The divergence of an edit from the base on unrelated text."""

    def held_out(self, demonstrations: DemonstrationMargins, edits: Sequence[SpectralEdit | None]) -> list[Measurement]:
        """Measures each edit on held-out demonstrations; None for the base."""


class WholeMeter:
    """A `Meter` of a model that is in memory. Edits are applied to it and removed again."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        texts: Sequence[str],
        progress: Progress,
    ) -> None:
        """Has the base answer ordinary questions, which is a part of the text.

        Args:
            model: the base.
            tokenizer: its tokenizer.
            texts: prose.
            progress: shows the progress.

        Raises:
            InputError: see `sea_export.evaluation.unrelated_text.unrelated_text`.
        """
        self._model, self._tokenizer, self._progress = model, tokenizer, progress
        questions = ordinary_questions()
        with progress("Answering", len(questions)) as advance:
            self._text = unrelated_text(model, tokenizer, texts, questions).part(_WHOLE_TOKENS)
            advance(len(questions))

    def search(self, fit: Fit, budget: float, start: float) -> tuple[tuple[StrengthStep, ...], Divergence]:
        """See `Meter`."""
        part = self._text.part(_PART_TOKENS)
        rest = self._text.without(part)
        meters = [self._repeated(text, fit) for text in (part, rest) if text.items]
        found: dict[float, Divergence] = {}

        def divergence(strength: float, whole: bool) -> float:
            edit = fit.trial_edit(strength)
            found[strength] = joined([self._divergence(edit, one) for one in (meters if whole else meters[:1])])
            return found[strength].largest.value

        steps = strength_by_secants(budget, divergence, start)
        return steps, found[steps[-1].strength]

    def damage(self, edit: SpectralEdit) -> Divergence:
        """See `Meter`."""
        return self._divergence(edit, RepeatedDivergence(self._model, self._text, ()))

    def held_out(self, demonstrations: DemonstrationMargins, edits: Sequence[SpectralEdit | None]) -> list[Measurement]:
        """See `Meter`."""
        measured = []
        for edit in edits:
            with nullcontext() if edit is None else edit.apply(self._model):
                measured.append(measure(demonstrations, self._model, self._tokenizer, progress=self._progress))
        return measured

    def _repeated(self, text: UnrelatedText, fit: Fit) -> RepeatedDivergence:
        return RepeatedDivergence(self._model, text, {min(target.layer for target in fit.edit().targets)})

    def _divergence(self, edit: SpectralEdit, meter: RepeatedDivergence) -> Divergence:
        with self._progress("Damage", meter.count) as advance:
            return meter.of(edit, advance)


class LayerMeter:
    """A `Meter` of a model that is in memory one layer at a time. It cannot generate, so that its text is all prose."""

    def __init__(
        self,
        source: StoredModel,
        tokenizer: PreTrainedTokenizerBase,
        projections: Sequence[OutputProjection],
        texts: Sequence[str],
        progress: Progress,
    ) -> None:
        """Reads the text.

        Args:
            source: the base.
            tokenizer: its tokenizer.
            projections: the output projections of the targets that edits have.
            texts: prose.
            progress: shows the progress.

        Raises:
            InputError: see `sea_export.evaluation.unrelated_text.prose_items`.
        """
        self._source, self._tokenizer = source, tokenizer
        self._projections, self._progress = projections, progress
        prose = tuple(prose_items(source.model, tokenizer, texts))
        self._text = UnrelatedText(prose, ()).part(_LAYERWISE_TOKENS)

    def search(self, fit: Fit, budget: float, start: float) -> tuple[tuple[StrengthStep, ...], Divergence]:
        """See `Meter`."""
        found: dict[float, Divergence] = {}

        def divergence(strengths: Sequence[float]) -> list[float]:
            edits = [fit.trial_edit(one) for one in strengths]
            found.update(zip(strengths, self._divergences(edits), strict=True))
            return [found[one].largest.value for one in strengths]

        steps = strength_by_grids(budget, divergence, start)
        return steps, found[steps[-1].strength]

    def damage(self, edit: SpectralEdit) -> Divergence:
        """See `Meter`."""
        return self._divergences([edit])[0]

    def held_out(self, demonstrations: DemonstrationMargins, edits: Sequence[SpectralEdit | None]) -> list[Measurement]:
        """See `Meter`."""
        pairs = demonstrations.items(self._tokenizer)
        items = [PromptedCompletions(pair.prompt, [one]) for pair in pairs for one in pair.completions]
        scores = [[0.0] * len(items) for _ in edits]

        def add(index: int, edit: int, log_probabilities: Tensor) -> None:
            tokens = torch.tensor(items[index].completions[0], device=log_probabilities.device)
            scores[edit][index] = float(log_probabilities.gather(1, tokens[:, None]).double().sum())

        with self._progress(demonstrations.label, 1) as advance:
            predict_by_layer(self._source, self._projections, items, edits, add)
            advance(1)
        scored = [list(zip(own[::2], own[1::2], strict=True)) for own in scores]
        return [Measurement(demonstrations.label, len(pairs), demonstrations.metrics(pairs, own)) for own in scored]

    def _divergences(self, edits: Sequence[SpectralEdit]) -> list[Divergence]:
        sums: list[dict[int, tuple[float, float]]] = [{} for _ in edits]
        base: dict[int, Tensor] = {}

        def compare(index: int, edit: int, log_probabilities: Tensor) -> None:
            if edit == 0:
                base[index] = log_probabilities
                return
            sums[edit - 1][index] = compared(base[index], log_probabilities)
            if edit == len(edits):
                del base[index]

        with self._progress("Damage", 1) as advance:
            predict_by_layer(self._source, self._projections, self._text.items, [None, *edits], compare)
            advance(1)
        return [divergence_of(self._text, own) for own in sums]
