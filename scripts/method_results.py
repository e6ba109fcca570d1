"""The results file of `benchmark_methods`, one JSON object a line."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sea_export.evaluation.metrics import Metric, mean_of_sums
from sea_export.evaluation.statistics import Interval, metric_differences

Record = dict[str, Any]
DAMAGE = "damage"


def digest(settings: Mapping[str, Any]) -> str:
    """The SHA-256, in hexadecimal, of settings that are plain JSON data."""
    return sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


class Results:
    """Measurements that are kept in a file, so that none is made twice."""

    def __init__(self, file: Path) -> None:
        """Reads the file, if it is there.

        Args:
            file: one JSON object a line.
        """
        self._file = file
        lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
        self.records: list[Record] = [json.loads(line) for line in lines]
        self._by_key = {record["key"]: record for record in self.records}

    def get(self, settings: Mapping[str, Any], measure: Callable[[], Record]) -> Record:
        """The record of a measurement, which is made and written if it is not there.

        Args:
            settings: everything that the measurement depends on.
            measure: makes it.
        """
        key = digest(settings)
        if key not in self._by_key:
            record = {"key": key, "settings": dict(settings), **measure()}
            with self._file.open("a", encoding="utf-8") as lines:
                lines.write(json.dumps(record) + "\n")
            self.records.append(record)
            self._by_key[key] = record
        return self._by_key[key]


def compared(metrics: Sequence[Metric], base: Sequence[Metric]) -> Record:
    """Metrics over all rows of an edit and of the base, with their differences, as plain JSON data.

    What each row contributes to a mean is kept too, so that edits can be compared with each other later.

    Args:
        metrics: those of the edit.
        base: those of the base, with the rows in the same order.
    """
    by_name = {metric.name: metric for metric in base if not metric.group}
    pairs = [(metric, by_name[metric.name]) for metric in metrics if not metric.group and metric.name in by_name]
    intervals = metric_differences([one for one, _ in pairs], [other for _, other in pairs])
    return {
        metric.name: {
            "unit": metric.unit,
            "base": other.value,
            "value": metric.value,
            "difference": list(interval),
            "standard_error": standard_error(metric, other),
            **({"rows": metric.rows.tolist(), "base_rows": other.rows.tolist()} if _is_mean(metric) else {}),
        }
        for (metric, other), interval in zip(pairs, intervals, strict=True)
    }


def pooled(first: Record, second: Record) -> Record:
    """Two records of one edit and one benchmark on different rows, as one record on all of them.

    Only metrics whose rows were kept are in it.

    Args:
        first: a record of `compared` metrics.
        second: another one.
    """
    both = [(name, one, second["metrics"][name]) for name, one in first["metrics"].items() if "rows" in one]
    edited = [_mean(name, [*one["rows"], *other["rows"]], one["unit"]) for name, one, other in both]
    base = [_mean(name, [*one["base_rows"], *other["base_rows"]], one["unit"]) for name, one, other in both]
    return {
        **first,
        "metrics": compared(edited, base),
        "seconds": first["seconds"] + second["seconds"],
        "peak_bytes": max(first["peak_bytes"], second["peak_bytes"]),
    }


def difference_on_same_rows(metric: Record, other: Record) -> Interval:
    """The difference of one metric between two edits, with its interval.

    Args:
        metric: of one edit, as in `compared`, with its rows.
        other: of the other edit, on the same rows.
    """
    return metric_differences([_mean("", metric["rows"], "")], [_mean("", other["rows"], "")])[0]


def standard_error(metric: Metric, base: Metric) -> float:
    """The standard error of the difference of two metrics of the same rows, by the jackknife (Tukey 1958)."""
    left_out = _without_each(metric) - _without_each(base)
    left_out = left_out[np.isfinite(left_out)]
    count = len(left_out)
    return float(np.sqrt((count - 1) / count * np.square(left_out - left_out.mean()).sum()))


def _without_each(metric: Metric) -> NDArray[np.float64]:
    return metric.statistic(metric.rows.sum(axis=0) - metric.rows)


def _is_mean(metric: Metric) -> bool:
    return metric.statistic is mean_of_sums


def _mean(name: str, rows: Sequence[Sequence[float]], unit: str) -> Metric:
    return Metric(name, np.asarray(rows, dtype=np.float64), mean_of_sums, best=math.inf, unit=unit)
