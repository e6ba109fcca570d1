"""The search for the settings with the best benchmark score within a damage budget.

Two objectives, a higher score and a lower divergence from the base on neutral text, with the tree-structured Parzen
estimator of Optuna: in turn over all settings, and around the best edit so far. Every trial makes its edit from
statistics that were collected once, and measures it on the choosing rows.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sea_export.options import FitOptions
from sea_export.tuning.choosing import pareto_front
from sea_export.tuning.search_space import SearchSpace
from sea_export.tuning.study import finished_trials, keep_result
from sea_export.tuning.trial import TrialResult, Tuner

if TYPE_CHECKING:
    from optuna import Study

__all__ = ["search"]

# In a trial around the best edit so many settings differ from it.
_VARIED = 2


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
    """Runs trials until the study has so many. The first one is the default edit.

    After the starting points every second trial changes a few settings of the best edit so far, because a random point
    among so many settings is seldom better than a good start. A search that continues an interrupted one makes the same
    trials that the interrupted one would have made.

    Args:
        study: from `open_study`.
        tuner: measures edits.
        space: what is tried.
        start: the default edit, and the settings that are not searched.
        trials: the number of trials that the study is to have in all.
        timeout: no further trial begins after so many seconds; None for no limit.
        seed: seed of the search.
        progress: told each result, and first those that the study held before.

    Returns:
        All results.
    """
    from optuna.samplers import TPESampler
    from optuna.trial import TrialState

    began = time.monotonic()
    results = finished_trials(study, start, space)
    for result in results:
        progress(result)
    starts = space.starts(start)
    while len(results) < trials and (timeout is None or time.monotonic() - began < timeout):
        chance = seed + len(results)
        study.sampler = TPESampler(seed=chance)
        given: dict[str, Any] = {}  # the settings that the sampler does not choose
        if len(results) < len(starts):
            given = starts[len(results)]
        elif len(results) % 2 == 0:
            front = pareto_front(results, max_divergence=space.max_kl, base_score=tuner.base.score)
            given = _most_of_the_best(study, front, chance)
        if given and not study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
            study.enqueue_trial(given)
        trial = study.ask()
        whole = not results and space.contains(start)  # the others are compared with the default edit
        candidate = space.suggest(trial, start)
        measured = next((one for one in results if one.candidate == candidate), None)
        if measured is None:
            result = tuner.try_edit(trial.number, candidate, whole=whole)
        else:
            result = replace(measured, number=trial.number)
        keep_result(study, trial, result)
        results.append(result)
        progress(result)
    return results


def _most_of_the_best(study: Study, front: Sequence[TrialResult], seed: int) -> dict[str, Any]:
    """Optuna's parameters of the best edit of a front, without a few random ones; empty if there is none."""
    if not front:
        return {}
    settings = study.get_trials(deepcopy=False)[front[-1].number].params
    varied = random.Random(seed).sample(sorted(settings), _VARIED)
    return {name: value for name, value in settings.items() if name not in varied}
