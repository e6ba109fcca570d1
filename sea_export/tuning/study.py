"""Studies: the trials of a search, which a file can keep, so that an interrupted search can be continued.

The file is a journal of Optuna, a line of JSON for each change. What a run that was killed has written of its last line
is removed. The lock is the system's, on the file itself: it needs no file beside it, and does not outlast its process.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sea_export.errors import InputError, first_line
from sea_export.locks import taking_turns
from sea_export.options import FitOptions
from sea_export.tuning.search_files import check_storage, complete_lines, unusable
from sea_export.tuning.search_space import SearchSpace
from sea_export.tuning.trial import TrialResult

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import Trial

__all__ = ["SearchSettings", "finished_trials", "keep_result", "open_study"]

# What a trial keeps of its result, under the name `_RESULT` in its study.
_KEPT = ("strength", "value", "score", "divergence", "cut")
_RESULT = "outcome"
# What Optuna raises for a journal that is not as it writes it.
_DAMAGE = (ArithmeticError, AssertionError, AttributeError, LookupError, OSError, RuntimeError, TypeError, ValueError)


@dataclass(frozen=True)
class SearchSettings:
    """Everything that decides what a trial gives. A study is continued only if all of it is the same.

    Attributes:
        base: name, revision and weight digests of the base.
        dtype: the dtype of the computation.
        demonstrations: digest of the demonstrations.
        benchmark: the name of the benchmark.
        choosing_rows: digest of the choosing rows.
        texts: digest of the neutral texts.
        metric: the metric that is improved.
        space: what is tried.
        start: the default edit, and the settings that are not searched.
        seed: the seed of the search.
    """

    base: Mapping[str, object]
    dtype: str
    demonstrations: str
    benchmark: str
    choosing_rows: str
    texts: str
    metric: str
    space: SearchSpace
    start: FitOptions
    seed: int

    def record(self) -> dict[str, Any]:
        """All of it as plain JSON data."""
        return asdict(self)


def open_study(storage: Path | None, settings: SearchSettings) -> Study:
    """The study of a search with these settings: a new one, or the one in `storage`.

    Args:
        storage: a file, which is made if it is missing; None to keep the study in memory only. Searches with other
            settings can share the file.
        settings: those of the search.

    Raises:
        InputError: optuna is missing, or the file is not usable.
    """
    check_storage(storage)
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    record = settings.record()
    digest = hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
    try:
        kept = None
        if storage is not None:
            _remove_half_line(storage)
            lock: Any = _JournalLock(storage)
            kept = JournalStorage(JournalFileBackend(str(storage), lock))
        study = optuna.create_study(
            study_name=f"sea-export {digest[:16]}",
            storage=kept,
            directions=["maximize", "minimize"],
            load_if_exists=True,
        )
        study.set_user_attr("settings", record)
    except _DAMAGE as error:
        raise unusable(storage, error) from error
    for trial in study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,)):
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)  # it belongs to a run that was interrupted
    return study


class _JournalLock:
    """What Optuna locks a journal with: processes take turns at the file."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._turn = ExitStack()

    def acquire(self) -> bool:
        self._turn.enter_context(taking_turns(self._file))
        return True

    def release(self) -> None:
        self._turn.close()


def _remove_half_line(journal: Path) -> None:
    """Removes what a killed run has written of the last line of a journal, which is made if it is missing."""
    journal.touch()
    with taking_turns(journal):
        os.truncate(journal, complete_lines(journal))


def finished_trials(study: Study, start: FitOptions, space: SearchSpace) -> list[TrialResult]:
    """The results of the trials that a study holds.

    Raises:
        InputError: a search with these settings did not write them.
    """
    from optuna.trial import FixedTrial, TrialState

    results = []
    try:
        for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED)):
            candidate = space.suggest(FixedTrial(trial.params), start)  # type: ignore[arg-type]
            results.append(TrialResult(trial.number, candidate, **_outcome(trial.user_attrs)))
    except (LookupError, TypeError, ValueError) as error:
        raise InputError(f"--storage: a trial in it is damaged ({first_line(error)}). Give another file.") from error
    return results


def _outcome(kept: Mapping[str, Any]) -> dict[str, Any]:
    """What `keep_result` kept of a trial. Raises ValueError if it is anything else."""
    outcome = kept[_RESULT]
    if not isinstance(outcome, dict) or outcome.keys() != set(_KEPT):
        raise ValueError("it has no result")
    *figures, cut = (outcome[name] for name in _KEPT)
    types = (int, float) if cut is None else (int, float, type(None))
    if not (cut is None or isinstance(cut, str)) or not all(type(figure) in types for figure in figures):
        raise ValueError("its result is not of numbers")
    return outcome


def keep_result(study: Study, trial: Trial, result: TrialResult) -> None:
    """Tells a study the result of one of its trials."""
    from optuna.trial import TrialState

    trial.set_user_attr(_RESULT, {name: getattr(result, name) for name in _KEPT})
    if result.score is None:
        study.tell(trial, state=TrialState.PRUNED)
    else:
        assert result.divergence is not None
        study.tell(trial, [result.score, result.divergence])
