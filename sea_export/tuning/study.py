"""Studies: the trials of a search, which a file can keep, so that an interrupted search can be continued."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sea_export.errors import InputError, first_line
from sea_export.options import FitOptions
from sea_export.tuning.search_space import SearchSpace
from sea_export.tuning.trial import TrialResult

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import Trial

__all__ = ["SearchSettings", "finished_trials", "keep_result", "open_study"]

# What a trial keeps of its result, under the name `_RESULT` in its study.
_KEPT = ("value", "score", "divergence", "cut")
_RESULT = "outcome"


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
        max_kl: the damage budget.
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
    max_kl: float
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
    try:
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend
    except ImportError:
        raise InputError(
            "optuna: a search needs it, and it is not installed. Run pip install 'sea-export[tune]'."
        ) from None

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    record = settings.record()
    digest = hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
    try:
        kept = None if storage is None else JournalStorage(JournalFileBackend(str(storage)))
        study = optuna.create_study(
            study_name=f"sea-export {digest[:16]}",
            storage=kept,
            directions=["maximize", "minimize"],
            load_if_exists=True,
        )
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{storage}: it cannot keep a study ({first_line(error)}). Give another file.") from error
    study.set_user_attr("settings", record)
    for trial in study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,)):
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)  # it belongs to a run that was interrupted
    return study


def finished_trials(study: Study, start: FitOptions, space: SearchSpace) -> list[TrialResult]:
    """The results of the trials that a study holds."""
    from optuna.trial import FixedTrial, TrialState

    results = []
    for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED)):
        options = space.suggest(FixedTrial(trial.params), start)  # type: ignore[arg-type]
        results.append(TrialResult(trial.number, options, **trial.user_attrs[_RESULT]))
    return results


def keep_result(study: Study, trial: Trial, result: TrialResult) -> None:
    """Tells a study the result of one of its trials."""
    from optuna.trial import TrialState

    trial.set_user_attr(_RESULT, {name: getattr(result, name) for name in _KEPT})
    if result.score is None:
        study.tell(trial, state=TrialState.PRUNED)
    else:
        study.tell(trial, [result.score, result.divergence])
