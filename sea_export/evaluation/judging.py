"""The answers of models judged, and the metrics of the verdicts."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sea_export.evaluation.benchmark import GivenAnswer, Measurement, Progress, no_progress
from sea_export.evaluation.evaluation_options import EvaluateOptions
from sea_export.evaluation.generation_options import template_values
from sea_export.evaluation.judge import CRITERIA, Judge, JudgeRequest, JudgeUnavailable
from sea_export.evaluation.loaded_model import check_loadable, open_loaded_model
from sea_export.evaluation.local_judge import LocalJudge
from sea_export.evaluation.metrics import Metric, mean_metric
from sea_export.evaluation.remote_judge import RemoteJudge
from sea_export.evaluation.verdict_file import VerdictFile
from sea_export.files.writing import check_appendable
from sea_export.model.run_options import RunOptions

__all__ = ["ChosenJudge", "Judging", "judge_measurements"]

_KEYS = ("SEA_EXPORT_JUDGE_KEY", "OPENAI_API_KEY")
"""Environment variables of the key, the first that is set counts."""


@dataclass(frozen=True)
class Judging:
    """How the judging went."""

    judge: str
    """The name of the judge."""
    asked: int
    """The number of verdicts that were asked for in this run. The others were known."""
    missing: int
    """The number of verdicts that are still missing."""
    failure: str | None
    """Why the judge could not be asked any more; None if it could."""

    def record(self) -> dict[str, Any]:
        """All of it as plain JSON data."""
        return {"judge": self.judge, "asked": self.asked, "missing": self.missing, "failure": self.failure}


@dataclass(frozen=True)
class ChosenJudge:
    """The judge that the options name."""

    model: str
    """A model on this machine or on the Hub, or the name of a model behind an address."""
    remote: RemoteJudge | None
    """The judge behind an address; None for a model that is opened here."""
    verdicts: VerdictFile
    options: EvaluateOptions
    run: RunOptions

    @classmethod
    def choose(cls, options: EvaluateOptions, run: RunOptions) -> ChosenJudge | None:
        """The judge, checked before any model is loaded; None if the options name none.

        Args:
            options: `judge`, `batch_tokens` and `generation` are used.
            run: how a judge on this machine is opened. Its revision is that of another model, and is not used.

        Raises:
            InputError: the judge is no model, or the file of its verdicts cannot be used.
        """
        model, url, file = options.judge.judge, options.judge.judge_url, options.judge.judge_cache
        if model is None:
            return None
        if file is not None:
            check_appendable(file)
        if url is not None:
            return cls(model, RemoteJudge(model, url, _key()), VerdictFile(model, model, file), options, run)
        own_run, path = replace(run, revision=None), Path(model).expanduser().resolve()
        # Directories of one name can be different judges.
        verdicts = VerdictFile(path.name, str(path), file) if path.exists() else VerdictFile(model, model, file)
        check_loadable(model, own_run)
        return cls(model, None, verdicts, options, own_run)

    def measure(
        self, measurements: Sequence[Measurement], progress: Progress = no_progress
    ) -> tuple[list[Measurement], Judging]:
        """`judge_measurements` by this judge, which is opened only if a verdict is missing."""
        return judge_measurements(measurements, self._opened(), self.verdicts, progress)

    @contextmanager
    def _opened(self) -> Iterator[Judge]:
        if self.remote is not None:
            yield self.remote
            return
        values = template_values(self.options.generation.chat_template_kwargs)
        with open_loaded_model(self.model, self.run) as loaded:
            yield LocalJudge(loaded.model, loaded.tokenizer, values, self.options.batch_tokens)


def _key() -> str | None:
    """The key of a judge behind an address; None if there is none."""
    return next((os.environ[name].strip() for name in _KEYS if os.environ.get(name, "").strip()), None)


def judge_measurements(
    measurements: Sequence[Measurement],
    opened: AbstractContextManager[Judge],
    verdicts: VerdictFile,
    progress: Progress = no_progress,
) -> tuple[list[Measurement], Judging]:
    """Judges all answers that have reference answers. The same answer to the same question is judged once.

    Args:
        measurements: those of all models.
        opened: the judge. It is entered only if a verdict is missing.
        verdicts: the verdicts that are known. New ones are added as soon as they are known.
        progress: see `sea_export.evaluation.benchmark.Progress`.

    Returns:
        The measurements with the metrics `truthful`, `informative`, `truthful and informative` and `not judged`, and
        how it went. A row without a verdict counts only as not judged.
    """
    requests = dict.fromkeys(
        request for one in measurements for answer in one.answers if answer.correct for request in _requests(answer)
    )
    missing = [request for request in requests if verdicts.get(request) is None]
    failure = None
    if missing:
        with opened as judge, progress("judge", len(missing)) as advance:
            try:
                found = judge.verdicts([request.prompt for request in missing])
                for request, verdict in zip(missing, found, strict=False):  # it may stop early, by an error
                    if verdict is not None:
                        verdicts.add(request, verdict)
                    advance(1)
            except JudgeUnavailable as error:
                failure = str(error)
    left = sum(verdicts.get(request) is None for request in missing)
    return [_judged(one, verdicts) for one in measurements], Judging(verdicts.judge, len(missing), left, failure)


def _requests(answer: GivenAnswer) -> list[JudgeRequest]:
    return [
        JudgeRequest(criterion, answer.prompt, answer.text, answer.correct, answer.incorrect) for criterion in CRITERIA
    ]


def _judged(measurement: Measurement, verdicts: VerdictFile) -> Measurement:
    """The measurement with its verdicts and their metrics."""
    if not any(answer.correct for answer in measurement.answers):
        return measurement
    answers = tuple(_with_verdicts(answer, verdicts) for answer in measurement.answers)
    truthful, informative = [one.truthful for one in answers], [one.informative for one in answers]
    both = [
        None if one.truthful is None or one.informative is None else one.truthful and one.informative for one in answers
    ]
    metrics = [
        _share("truthful", truthful),
        _share("informative", informative),
        _share("truthful and informative", both),
        mean_metric("not judged", [one is None for one in both], best=0.0),
    ]
    kept = tuple(metric for metric in metrics if metric is not None)
    return replace(measurement, answers=answers, metrics=(*measurement.metrics, *kept))


def _with_verdicts(answer: GivenAnswer, verdicts: VerdictFile) -> GivenAnswer:
    found = {request.criterion: verdicts.get(request) for request in _requests(answer)}
    return replace(answer, truthful=found["truthful"], informative=found["informative"])


def _share(name: str, verdicts: Sequence[bool | None]) -> Metric | None:
    """The share of yes among the verdicts; None if there is no verdict."""
    if all(one is None for one in verdicts):
        return None
    return mean_metric(name, [one is True for one in verdicts], weights=[one is not None for one in verdicts])
