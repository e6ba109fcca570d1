"""Searches an edit's settings for the best benchmark score that stays within a damage budget.

Two objectives, the score up and the divergence from the base on neutral text down, by Optuna's tree-structured Parzen
estimator: by turns in all settings, and around the best edit so far. Every trial is a truncation of spectra that were
taken once, and an evaluation on the choosing rows.
"""

from __future__ import annotations

import hashlib
import json
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sea_export.errors import InputError, SeaExportError
from sea_export.evaluation.benchmark import Benchmark, Measurement, measure, with_rows
from sea_export.evaluation.damage import DIVERGENCE, TextPredictions, measure_damage, predict_texts
from sea_export.evaluation.metrics import Metric
from sea_export.evaluation.statistics import metric_differences
from sea_export.fitting.bank import StatisticsBank
from sea_export.options import CENTERS, SITES, TARGETS, FitOptions

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import Trial
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["SearchSpace", "TrialResult", "Tuner", "choose", "open_study", "pareto_front", "search"]

# A trial is cut short when its divergence is so many times the budget: little more of it can be learnt.
_FAR_OVER_BUDGET = 1.5
# The share of the choosing rows, and of the texts, after which a hopeless trial is given up.
_FIRST_PART = 0.3
# Of fewer rows no interval is wide enough to give a trial up for.
_FEWEST_ROWS = 20
# The divergence grows with about the square of the strength: these cost about 1, 1/2, 1/4 and 1/16 of it.
_STARTING_STRENGTHS = (1.0, 0.7, 0.5, 0.25)
# How many settings differ from those of the best edit in a trial around it.
_VARIED = 2
_NORMALIZATIONS = ("none", "average", "calibrated")


@dataclass(frozen=True)
class SearchSpace:
    """The settings that are tried."""

    layer_count: int
    targets: tuple[str, ...] = TARGETS
    sites: tuple[str, ...] = SITES
    centers: tuple[str, ...] = CENTERS

    def suggest(self, trial: Trial, start: FitOptions) -> FitOptions:
        """The settings of a trial; all others are those of `start`."""
        kind = trial.suggest_categorical("layers", ("last", "first", "signature"))
        count = trial.suggest_int("count", 1, self.layer_count)
        # What is left unexplained, since 0.99 and 0.999 are as far apart as 0.9 and 0.99.
        kept = trial.suggest_float("positive_remainder", 1e-5, 0.5, log=True)
        dropped = trial.suggest_float("negative_remainder", 1e-5, 0.5, log=True)
        return replace(
            start,
            layers=f"{kind}:{count}",
            target=trial.suggest_categorical("target", self.targets),
            center=trial.suggest_categorical("center", self.centers),
            capture=replace(start.capture, site=trial.suggest_categorical("site", self.sites)),
            edit=replace(
                start.edit,
                positive_variance=round(1 - kept, 6),
                negative_variance=round(1 - dropped, 6),
                strength=round(trial.suggest_float("strength", 0.05, 2.0, step=0.05), 2),
                normalization=trial.suggest_categorical("normalization", _NORMALIZATIONS),
            ),
        )

    def starts(self, start: FitOptions) -> list[dict[str, Any]]:
        """What is tried first: the default edit if it is in the space, and weaker ones, of every target."""
        tried = [self._parameters(start)]
        for strength in _STARTING_STRENGTHS:
            for target in self.targets:
                edit = replace(start.edit, strength=strength)
                tried.append(self._parameters(replace(start, target=target, edit=edit)))
        known = [parameters for parameters in tried if parameters is not None]
        return [one for index, one in enumerate(known) if one not in known[:index]]

    def contains(self, options: FitOptions) -> bool:
        """Whether the default edit `options` is in the space."""
        return self._parameters(options) is not None

    def _parameters(self, options: FitOptions) -> dict[str, Any] | None:
        """What `suggest` must be told to give `options`, a variant of the default edit; None if it is not in here."""
        kind, _, count = options.layers.partition(":")
        chosen = {"target": options.target, "center": options.center, "site": options.capture.site}
        allowed = {"target": self.targets, "center": self.centers, "site": self.sites}
        if any(value not in allowed[name] for name, value in chosen.items()):
            return None
        return {
            **chosen,
            "layers": kind,
            "count": int(count),
            "positive_remainder": 1 - options.edit.variance("positive"),
            "negative_remainder": 1 - options.edit.variance("negative"),
            "strength": options.edit.strength,
            "normalization": options.edit.normalization,
        }


@dataclass(frozen=True)
class TrialResult:
    """What a trial gave on the choosing rows."""

    number: int
    """Of the trial in its study."""
    options: FitOptions
    value: float | None
    """The metric; None for a trial that was cut short."""
    score: float | None
    """How good that is: see `sea_export.evaluation.metrics.Metric.score`."""
    divergence: float
    """Mean KL from the base in nats per token; of a first part of the texts, for a trial that was cut short there."""
    cut: str | None
    """Why the trial was cut short, or None."""


class Tuner:
    """Measures edits of one model on the choosing rows."""

    def __init__(
        self,
        bank: StatisticsBank,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        benchmark: Benchmark,
        texts: Sequence[str],
        *,
        metric: str,
        max_divergence: float,
        batch_tokens: int = 2048,
    ) -> None:
        """Measures the base.

        Args:
            bank: what edits are made from.
            model: the base; edits are applied to it and taken off again.
            tokenizer: its tokenizer.
            benchmark: the choosing rows.
            texts: neutral passages, at least two.
            metric: name of the benchmark's figure that is to get better.
            max_divergence: the damage budget: mean KL from the base, in nats per token.
            batch_tokens: about how many tokens a forward pass computes.

        Raises:
            InputError: the benchmark gives no such figure.
        """
        self.bank, self.model, self.tokenizer = bank, model, tokenizer
        self.metric, self.max_divergence, self.batch_tokens = metric, max_divergence, batch_tokens
        first = max(1, round(_FIRST_PART * len(benchmark.rows)))
        self._parts = [with_rows(benchmark, rows) for rows in (benchmark.rows[:first], benchmark.rows[first:])]
        cut = max(1, round(_FIRST_PART * len(texts)))
        self._texts = [texts[:cut], texts[cut:]]
        self._references = [predict_texts(model, tokenizer, part) for part in self._texts]
        self._base = [self._figure(part) for part in self._parts]
        self.base = _joined(self._base)

    def try_edit(self, number: int, options: FitOptions, *, whole: bool = False) -> TrialResult:
        """Measures one edit, the cheap part first.

        Args:
            number: of the trial.
            options: its settings.
            whole: whether it is measured to the end however hopeless it is.
        """
        edit = self.bank.edit(options)
        with edit.apply(self.model):
            divergence = self._divergence(0)
            if not whole and divergence.value > _FAR_OVER_BUDGET * self.max_divergence:
                return TrialResult(number, options, None, None, divergence.value, "over budget on the first texts")
            divergence = _joined([divergence, self._divergence(1)])
            if not whole and divergence.value > _FAR_OVER_BUDGET * self.max_divergence:
                return TrialResult(number, options, None, None, divergence.value, "over budget")
            figure = self._figure(self._parts[0])
            if not whole and _surely_worse(figure, self._base[0]):
                return TrialResult(
                    number, options, None, None, divergence.value, "worse than the base on the first rows"
                )
            figure = _joined([figure, self._figure(self._parts[1])])
        return TrialResult(number, options, figure.value, figure.score, divergence.value, None)

    def _figure(self, part: Benchmark) -> Metric:
        measured = measure(part, self.model, self.tokenizer, batch_tokens=self.batch_tokens)
        return measured.figure(self.metric)

    def _divergence(self, part: int) -> Metric:
        reference: TextPredictions = self._references[part]
        measured: Measurement = measure_damage(self.model, self.tokenizer, self._texts[part], reference)
        return measured.figure(DIVERGENCE)


def _joined(figures: Sequence[Metric]) -> Metric:
    """The figure over all rows of several parts."""
    return replace(figures[0], rows=np.concatenate([figure.rows for figure in figures]))


def _surely_worse(figure: Metric, base: Metric) -> bool:
    """Whether the 99 % interval of the difference lies wholly on the wrong side of the base."""
    if len(figure.rows) < _FEWEST_ROWS:
        return False
    (difference,) = metric_differences([figure], [base], confidence=0.99, samples=2000)
    return difference.high < 0 if base.best > base.value else difference.low > 0


# The study


def open_study(storage: Path | None, settings: dict[str, Any]) -> Study:
    """The study of a search with these settings: a new one, or the one that `storage` holds.

    Args:
        storage: a file, made if missing; None to keep the study in memory only.
        settings: everything that decides what a trial gives, as plain JSON data. Searches with other settings can
            share a file.

    Raises:
        InputError: optuna is missing, or the file cannot be used.
    """
    try:
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend
    except ImportError:
        raise InputError("tuning needs optuna: pip install 'sea-export[tune]'") from None

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    try:
        kept = None if storage is None else JournalStorage(JournalFileBackend(str(storage)))
        study = optuna.create_study(
            study_name=f"sea-export {digest[:16]}",
            storage=kept,
            directions=["maximize", "minimize"],
            load_if_exists=True,
        )
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{storage} cannot hold a study: {error}") from error
    study.set_user_attr("settings", settings)
    for trial in study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,)):
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)  # of a run that was interrupted
    return study


def _finished(study: Study, start: FitOptions, space: SearchSpace) -> list[TrialResult]:
    """What the trials of a study have given so far."""
    from optuna.trial import FixedTrial, TrialState

    outcomes = []
    for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED)):
        options = space.suggest(FixedTrial(trial.params), start)  # type: ignore[arg-type]
        outcomes.append(TrialResult(trial.number, options, **trial.user_attrs["outcome"]))
    return outcomes


def search(
    study: Study,
    tuner: Tuner,
    space: SearchSpace,
    start: FitOptions,
    *,
    trials: int,
    timeout: float | None,
    seed: int,
    progress: Callable[[TrialResult], None],
) -> list[TrialResult]:
    """Runs trials until the study has so many, the first of which is the default edit.

    After the starting points every second trial varies the best edit so far in few settings, since among so many
    settings chance alone seldom finds what is better than a good start. An interrupted search that goes on makes the
    trials that it would have made.

    Args:
        study: from `open_study`.
        tuner: measures edits.
        space: what is tried.
        start: the default edit, and the settings that are not searched.
        trials: how many trials the study is to have in all.
        timeout: seconds after which no further trial is begun, or None.
        seed: seed of the search.
        progress: told each outcome, those that the study held before first.

    Returns:
        All outcomes.
    """
    from optuna.samplers import TPESampler
    from optuna.trial import TrialState

    began = time.monotonic()
    outcomes = _finished(study, start, space)
    for outcome in outcomes:
        progress(outcome)
    starts = space.starts(start)
    while len(outcomes) < trials and (timeout is None or time.monotonic() - began < timeout):
        chance = seed + len(outcomes)
        study.sampler = TPESampler(seed=chance)
        given: dict[str, Any] = {}  # what is not left to the sampler
        if len(outcomes) < len(starts):
            given = starts[len(outcomes)]
        elif len(outcomes) % 2 == 0:
            given = _most_of_the_best(study, outcomes, tuner.max_divergence, chance)
        if given and not study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
            study.enqueue_trial(given)
        trial = study.ask()
        whole = not outcomes and space.contains(start)  # the default edit is what the others are held against
        options = space.suggest(trial, start)
        measured = next((one for one in outcomes if one.options == options), None)
        if measured is None:
            outcome = tuner.try_edit(trial.number, options, whole=whole)
        else:
            outcome = replace(measured, number=trial.number)
        facts = asdict(outcome)
        trial.set_user_attr("outcome", {name: facts[name] for name in ("value", "score", "divergence", "cut")})
        if outcome.score is None:
            study.tell(trial, state=TrialState.PRUNED)
        else:
            study.tell(trial, [outcome.score, outcome.divergence])
        outcomes.append(outcome)
        progress(outcome)
    return outcomes


def _most_of_the_best(
    study: Study, outcomes: Sequence[TrialResult], max_divergence: float, seed: int
) -> dict[str, Any]:
    """The settings of the best edit within the budget, but for a few that chance names; none if no edit is within."""
    front = pareto_front(outcomes, max_divergence)
    if not front:
        return {}
    settings = study.get_trials(deepcopy=False)[front[-1].number].params
    varied = random.Random(seed).sample(sorted(settings), _VARIED)
    return {name: value for name, value in settings.items() if name not in varied}


# The choice


def pareto_front(outcomes: Sequence[TrialResult], max_divergence: float) -> list[TrialResult]:
    """The outcomes within the budget that no other beats in both score and divergence, by rising divergence."""
    front: list[TrialResult] = []
    for outcome in sorted(_within(outcomes, max_divergence), key=lambda one: (one.divergence, -_score(one))):
        if not front or _score(outcome) > _score(front[-1]):
            front.append(outcome)
    return front


def choose(outcomes: Sequence[TrialResult], pick: str, *, max_divergence: float, base_score: float) -> TrialResult:
    """One outcome of a search.

    Args:
        outcomes: all of them.
        pick: `best`, the highest score within the budget; `knee`, where the front lies farthest above the straight
            line from the base to the best; or the number of a trial.
        max_divergence: the budget.
        base_score: the base's score, at divergence 0.

    Raises:
        InputError: there is no trial of that number, or it was cut short.
        SeaExportError: no trial stayed within the budget.
    """
    if pick not in ("best", "knee"):
        for outcome in outcomes:
            if str(outcome.number) == pick and outcome.cut is None:
                return outcome
        raise InputError(f"--pick {pick}: there is no such trial, or it was cut short")
    front = pareto_front(outcomes, max_divergence)
    if not front:
        raise SeaExportError(
            f"none of {len(outcomes)} trials stayed within a KL of {max_divergence}: raise --max-kl or --trials"
        )
    best = front[-1]
    rise = _score(best) - base_score
    if pick == "best" or rise <= 0:
        return best
    return max(front, key=lambda one: (_score(one) - base_score) / rise - one.divergence / best.divergence)


def _within(outcomes: Sequence[TrialResult], max_divergence: float) -> list[TrialResult]:
    return [outcome for outcome in outcomes if outcome.cut is None and outcome.divergence <= max_divergence]


def _score(outcome: TrialResult) -> float:
    assert outcome.score is not None
    return outcome.score
