"""One trial of a search: an edit with some settings, measured on the choosing rows.

The strength of every edit is the largest one within its damage budget, so that edits are compared at equal damage. All
trials start from the base's hidden states below the first edited layer, and are compared with predictions of the base
that are kept. A step of the search for a strength, and a trial, end as soon as their result is known.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from sea_export.edit.spectral_edit import SpectralEdit
from sea_export.effect.strength import first_strength, strength_by_secants
from sea_export.errors import SeaExportError, first_line
from sea_export.evaluation.benchmark import Benchmark, Measurement, with_rows
from sea_export.evaluation.divergence import Divergence, RepeatedDivergence, joined, joined_metric
from sea_export.evaluation.metrics import Metric
from sea_export.evaluation.repeated_scoring import RepeatedScorer
from sea_export.evaluation.statistics import metric_differences
from sea_export.evaluation.unrelated_text import unrelated_text
from sea_export.fitting.bank import StatisticsBank
from sea_export.fitting.fit import Fit
from sea_export.options import FitOptions
from sea_export.tuning.search_space import Candidate

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["WHOLE_TOKENS", "TrialResult", "Tuner", "surely_worse"]

T = TypeVar("T")

WHOLE_TOKENS = 2000
"""Counted tokens of either kind of text on which damage is measured."""
# Those of the first steps towards a strength.
_PART_TOKENS = 400
# What has more than so many times the budget on a part of the text is not measured on the rest.
_FAR_OVER_BUDGET = 1.5
# The relative change of activations with which a search of the strength begins, for a budget of 1 nat.
_FIRST_CHANGE = 0.3
# A hopeless trial is given up after this share of the choosing rows.
_FIRST_PART = 0.3
# The interval of fewer rows is never a reason to give up a trial.
_FEWEST_ROWS = 20
# Hidden states of the base are kept before about so many layers, evenly spaced.
_STARTS = 8


@dataclass(frozen=True)
class TrialResult:
    """What a trial gave on the choosing rows.

    Attributes:
        number: the number of the trial in its study.
        candidate: the settings of the edit, but for its strength.
        strength: the largest strength within the budget of the candidate; None if none was found.
        value: the metric; None for a trial that was cut short.
        score: how good the value is: see `sea_export.evaluation.metrics.Metric.score`.
        divergence: mean KL from the base in nats per token; None without a strength.
        cut: why the trial was cut short; None if it was not.
    """

    number: int
    candidate: Candidate
    strength: float | None
    value: float | None
    score: float | None
    divergence: float | None
    cut: str | None

    @property
    def options(self) -> FitOptions:
        """The settings of the edit. A strength was found."""
        assert self.strength is not None
        return self.candidate.at(self.strength)

    def record(self) -> dict[str, Any]:
        """All of it as plain JSON data."""
        own = {name: getattr(self, name) for name in ("number", "value", "score", "divergence", "cut", "strength")}
        options = self.candidate.options if self.strength is None else self.options
        return {**own, "budget": self.candidate.budget, "options": asdict(options)}


class Tuner:
    """Measures edits of one model on the choosing rows."""

    def __init__(
        self,
        bank: StatisticsBank,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        benchmark: Benchmark,
        texts: Sequence[str],
        questions: Sequence[str],
        *,
        metric: str,
        scratch: Path,
        batch_tokens: int = 2048,
    ) -> None:
        """Measures the base.

        Args:
            bank: makes the edits.
            model: the base. Edits are applied to it and removed again.
            tokenizer: its tokenizer.
            benchmark: the choosing rows.
            texts: neutral passages, at least two.
            questions: what the base answers for its damage, at least two.
            metric: the name of the metric that is to be improved.
            scratch: a directory for hidden states and predictions of the base, in files without a name.
            batch_tokens: about how many tokens a forward pass computes.

        Raises:
            InputError: the benchmark has no such metric.
            SeaExportError: there is no room in the directory.
        """
        self._bank, self._metric = bank, metric
        starts = range(0, bank.layer_count, max(1, bank.layer_count // _STARTS))
        self._parts = [with_rows(benchmark, rows) for rows in _two_parts(benchmark.rows)]
        self._scorers = [
            RepeatedScorer(model, part.items(tokenizer), starts, batch_tokens=batch_tokens, directory=scratch)
            for part in self._parts
        ]
        text = unrelated_text(model, tokenizer, texts, questions).part(WHOLE_TOKENS)
        part = text.part(_PART_TOKENS)
        self._meters = [
            RepeatedDivergence(model, one, starts, directory=scratch) for one in (part, text.without(part)) if one.items
        ]
        self._base = [self._measured(part) for part in range(len(self._parts))]
        self.base = joined_metric(self._base)

    def try_edit(self, number: int, candidate: Candidate, *, whole: bool = False) -> TrialResult:
        """Finds the strength of one edit, and measures the edit, first on a part of the rows.

        Args:
            number: the number of the trial.
            candidate: its settings.
            whole: whether it is measured to the end, even if it is hopeless.
        """
        try:
            strength, edit, divergence = self._within(candidate.budget, self._bank.fit(candidate.options))
        except SeaExportError as error:
            return TrialResult(number, candidate, None, None, None, None, first_line(error))
        metric = self.score(edit, whole=whole)
        if metric is None:
            cut = "worse than the base on the first rows"
            return TrialResult(number, candidate, strength, None, None, divergence.largest.value, cut)
        return TrialResult(number, candidate, strength, metric.value, metric.score, divergence.largest.value, None)

    def score(self, edit: SpectralEdit, *, whole: bool) -> Metric | None:
        """The metric of an edit; None if it was given up because it is surely worse than the base on the first rows.

        Args:
            edit: the edit.
            whole: whether it is never given up.
        """
        first = self._measured(0, edit)
        if not whole and surely_worse(first, self._base[0]):
            return None
        return joined_metric([first, self._measured(1, edit)])

    def divergence(self, edit: SpectralEdit, limit: float, *, whole: bool = True) -> Divergence:
        """The divergence of an edit from the base.

        Args:
            edit: the edit.
            limit: as soon as the divergence is surely beyond it, or far beyond it on the first part of the text, no
                further text is measured.
            whole: whether the rest of the text is measured too.
        """
        part, *rest = self._meters
        found = [part.of(edit, limit=limit)]
        beyond = found[0].is_beyond(limit) or found[0].largest.value > _FAR_OVER_BUDGET * limit
        if whole and not beyond:
            found += [one.of(edit) for one in rest]
        return joined(found)

    def _within(self, budget: float, fit: Fit) -> tuple[float, SpectralEdit, Divergence]:
        """The largest strength within a budget, the edit of that strength, and its divergence."""
        start = first_strength(_FIRST_CHANGE * budget**0.5, fit.edit().relative_change)
        if start is None:
            raise SeaExportError("the edit: it changes nothing, at any strength. Choose other settings.")
        found: dict[float, Divergence] = {}

        def measure(strength: float, whole: bool) -> float:
            limit = budget if whole else _FAR_OVER_BUDGET * budget
            found[strength] = self.divergence(fit.trial_edit(strength), limit, whole=whole)
            return found[strength].largest.value

        strength = strength_by_secants(budget, measure, start)[-1].strength
        return strength, fit.trial_edit(strength), found[strength]

    def _measured(self, part: int, edit: SpectralEdit | None = None) -> Metric:
        benchmark, scorer = self._parts[part], self._scorers[part]
        metrics = benchmark.metrics(scorer.items, scorer.log_likelihoods(edit))
        return Measurement(benchmark.label, len(benchmark.rows), metrics).metric(self._metric)


def _two_parts(rows: Sequence[T]) -> tuple[Sequence[T], Sequence[T]]:
    """The first rows, with which a trial begins, and the others."""
    first = max(1, round(_FIRST_PART * len(rows)))
    return rows[:first], rows[first:]


def surely_worse(metric: Metric, base: Metric) -> bool:
    """Whether the whole 99 % interval of the difference is on the wrong side of the base. Never with few rows."""
    if len(metric.rows) < _FEWEST_ROWS:
        return False
    (difference,) = metric_differences([metric], [base], confidence=0.99, samples=2000)
    return difference.high < 0 if base.best > base.value else difference.low > 0
