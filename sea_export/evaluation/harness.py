"""Tasks of lm-evaluation-harness, with the intervals and tests of this project."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sea_export.errors import InputError, SeaExportError, first_line
from sea_export.evaluation.benchmark import Measurement
from sea_export.evaluation.metrics import Metric, mean_metric

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["Harness", "harness_measurements"]

logger = logging.getLogger(__name__)

_SHARES = {"acc", "acc_norm", "exact_match", "em", "f1", "pct_stereotype"}
"""Metrics that are shares of rows. The others are shown as they are."""


@dataclass(frozen=True)
class Harness:
    """Which tasks are run, and with what."""

    tasks: tuple[str, ...]
    limit: int | None
    """The number of first rows of each task; None for all."""
    seed: int
    library: Any
    """The module `lm_eval`."""
    manager: Any
    """Its `TaskManager`."""

    @classmethod
    def load(cls, text: str, limit: int | None, seed: int, library: Any = None) -> Harness:
        """Finds the library and the tasks.

        Args:
            text: names of tasks, or YAML files of tasks, with commas between them.
            limit: see `Harness`.
            seed: seed of the examples that a task draws.
            library: the module `lm_eval`; None to import it.

        Raises:
            InputError: the library is not installed, or it has no such task.
        """
        tasks = tuple(name.strip() for name in text.split(",") if name.strip())
        if not tasks:
            raise InputError("--lm-eval: it names no task. Give one, such as arc_easy.")
        library = library or _imported()
        manager = library.tasks.TaskManager()
        for task in tasks:
            if not Path(task).is_file() and not manager.match_tasks([task]):
                raise InputError(f"--lm-eval: lm-evaluation-harness has no task {task}. Check the name.")
        return cls(tasks, limit, seed, library, manager)

    def measure(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[Measurement]:
        """Runs the tasks on a model. The harness shows its own progress.

        Args:
            model: a causal language model.
            tokenizer: its tokenizer.

        Returns:
            One measurement for each task; for a group, one for each task in it.

        Raises:
            SeaExportError: a task fails, or has no metric that is a mean over its rows.
        """
        wrapped = self.library.models.huggingface.HFLM(pretrained=model, tokenizer=tokenizer, batch_size=8)
        try:
            results = self.library.simple_evaluate(
                model=wrapped,
                tasks=list(self.tasks),
                limit=self.limit,
                log_samples=True,
                bootstrap_iters=0,
                task_manager=self.manager,
                random_seed=self.seed,
                numpy_random_seed=self.seed,
                torch_random_seed=self.seed,
                fewshot_random_seed=self.seed,
            )
        # The rows of a task come from anywhere, and its code may raise anything.
        except Exception as error:
            raise SeaExportError(
                f"--lm-eval: lm-evaluation-harness fails ({type(error).__name__}: {first_line(error)}). Run its own "
                "command line on the task to find out why."
            ) from error
        return harness_measurements(results)


def _imported() -> Any:
    try:
        import lm_eval
        import lm_eval.models.huggingface
        import lm_eval.tasks
    except ImportError as error:
        raise InputError(
            f"--lm-eval: lm-evaluation-harness is not usable ({first_line(error)}). Run pip install "
            "'sea-export[lm-eval]'."
        ) from error
    return lm_eval


def harness_measurements(results: Mapping[str, Any]) -> list[Measurement]:
    """The metrics of each task whose value is the mean over its rows, row by row. Others are named in a warning.

    Args:
        results: what `lm_eval.simple_evaluate` returns with `log_samples`.

    Raises:
        SeaExportError: a task has no such metric.
    """
    return [_measurement(task, samples, results) for task, samples in sorted(results["samples"].items())]


def _measurement(task: str, samples: Sequence[Mapping[str, Any]], results: Mapping[str, Any]) -> Measurement:
    reported = results["results"][task]
    higher = results.get("higher_is_better", {}).get(task, {})
    metrics: list[Metric] = []
    others: list[str] = []
    count = len({sample["doc_id"] for sample in samples})
    for key, value in reported.items():
        name, _, chosen = key.partition(",")
        if not chosen or name.endswith("_stderr"):
            continue
        rows = sorted((one for one in samples if one.get("filter", chosen) == chosen), key=lambda one: one["doc_id"])
        values: list[Any] = [row.get(name) for row in rows]
        if not _is_mean(value, values):  # such as a perplexity or a BLEU
            others.append(name)
            continue
        metrics.append(
            mean_metric(
                name if chosen == "none" else f"{name}, {chosen}",
                [float(one) for one in values],
                best=1.0 if higher.get(name, True) else 0.0,
                unit="%" if name in _SHARES else "score",
            )
        )
    if not metrics:
        raise SeaExportError(
            f"{task}: none of its metrics is a mean over its rows, which intervals by row need. Choose another task."
        )
    if others:
        logger.warning("%s: left out %s, which is no mean over rows.", task, ", ".join(others))
    return Measurement(f"lm-eval {task}", count, tuple(metrics))


def _is_mean(value: Any, values: Sequence[Any]) -> bool:
    numbers = [float(one) for one in values if isinstance(one, (bool, int, float)) and math.isfinite(one)]
    if not values or len(numbers) < len(values) or not isinstance(value, (int, float)):
        return False
    return math.isclose(sum(numbers) / len(numbers), value, rel_tol=1e-6, abs_tol=1e-9)
