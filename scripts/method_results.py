"""The results file of `benchmark_methods`, one JSON object a line, and the tables that are printed from it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sea_export.evaluation.demonstration_margins import HELD_OUT, MARGIN
from sea_export.evaluation.metrics import Metric
from sea_export.evaluation.statistics import metric_differences
from sea_export.text import interval_text

Record = dict[str, Any]
_Arms = dict[str, list[Record]]

DAMAGE = "damage"

# The metrics in the tables, by benchmark. The results file has all of them.
_SHOWN = {
    HELD_OUT: (MARGIN,),
    "truthfulqa": ("MC1", "MC2", "MC3", "NLL of true answers"),
    "bbq": (
        *("accuracy", "accuracy, ambiguous", "accuracy, disambiguated"),
        *("stereotypical answers", "bias score, ambiguous", "bias score, disambiguated"),
    ),
    "crows-pairs": ("stereotypical preferences", "difference of log-likelihoods"),
}
# The metrics by which a method is chosen.
_CHOOSING = ("truthfulqa: MC2", "bbq: accuracy, ambiguous")
# How the names of arms begin that are no method, and are not chosen.
_SHUFFLED = "shuffled labels"
_CONTROLS = ("random direction", "turned sign", _SHUFFLED)


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
        }
        for (metric, other), interval in zip(pairs, intervals, strict=True)
    }


def standard_error(metric: Metric, base: Metric) -> float:
    """The standard error of the difference of two metrics of the same rows, by the jackknife (Tukey 1958)."""
    left_out = _without_each(metric) - _without_each(base)
    left_out = left_out[np.isfinite(left_out)]
    count = len(left_out)
    return float(np.sqrt((count - 1) / count * np.square(left_out - left_out.mean()).sum()))


def _without_each(metric: Metric) -> NDArray[np.float64]:
    return metric.statistic(metric.rows.sum(axis=0) - metric.rows)


# Tables


def tables(records: Iterable[Record]) -> str:
    """Markdown tables of all measurements: one for each model, demonstrations, budget, texts and half of the rows."""
    known = list(records)
    # The damage and the held-out demonstrations of an edit are the same for both halves.
    shared: dict[str, _Arms] = {}
    groups: dict[str, dict[str, _Arms]] = {}
    for record in known:
        settings = record["settings"]
        title = _title(settings)
        own = shared if "rows" not in settings else groups.setdefault(title, {})
        name = title if "rows" not in settings else _rows_text(settings)
        own.setdefault(name, {}).setdefault(settings["arm"], []).append(record)
    texts = []
    for title, arms in shared.items():
        halves = groups.get(title, {})
        for rows, measured in halves.items() or [("", {arm: [] for arm in arms})]:
            together = {arm: [*own, *measured[arm]] for arm, own in arms.items() if arm in measured}
            texts += [f"{title}{rows}", _table(together), *_of_draws(together), *_correlations(together)]
            texts += _chosen(rows, halves)
        texts += [f"{arm}: {one['error']}" for arm, own in arms.items() for one in own if "error" in one]
    return "\n\n".join(texts)


def _title(settings: Mapping[str, Any]) -> str:
    return (
        f"{settings['model']}, {settings['fitted']} demonstrations of {settings['demonstrations']}, "
        f"KL {settings['kl']} on texts {settings['texts'][:8]}"
    )


def _rows_text(settings: Mapping[str, Any]) -> str:
    limit = settings["limit"]
    return f", {settings['rows']} rows" + ("" if limit is None else f", at most {limit} of each benchmark")


def _cells(records: Sequence[Record]) -> dict[str, str]:
    """The cells of an arm by column."""
    cells = {}
    for record in records:
        if record["settings"]["what"] == DAMAGE and "strength" in record:
            cells["strength"] = f"{record['strength']:.3g}"
            for name, kl in record["kl"].items():
                cells[f"KL, {name}"] = f"{kl:.4f}"
            cells["top-1 agreement (%)"] = f"{100 * record['agreement']:.1f}"
        for name, metric in _metrics(record).items():
            error = _value_text(metric["standard_error"], metric["unit"])
            column = f"Δ {name} ({'points' if metric['unit'] == '%' else metric['unit']})"
            cells[column] = f"{interval_text(metric['difference'], metric['unit'], signed=True)} ± {error}"
    cells["seconds"] = f"{sum(record['seconds'] for record in records):.0f}"
    cells["peak (GB)"] = f"{max(record['peak_bytes'] for record in records) / 1e9:.1f}"
    return cells


def _value_text(value: float, unit: str) -> str:
    return f"{100 * value:.1f}" if unit == "%" else f"{value:.3f}"


def _metrics(record: Record) -> dict[str, Record]:
    """The metrics of a record that tables show, by the name of their column."""
    what = record["settings"]["what"]
    shown = _SHOWN.get(what, ())
    found: dict[str, Record] = record.get("metrics", {})
    return {f"{what}: {name}": found[name] for name in shown if name in found}


def _table(arms: Mapping[str, Sequence[Record]]) -> str:
    rows = {arm: _cells(records) for arm, records in arms.items()}
    columns = list(dict.fromkeys(column for cells in rows.values() for column in cells))
    columns = [one for one in columns if one not in ("seconds", "peak (GB)")] + ["seconds", "peak (GB)"]
    lines = [f"| method | {' | '.join(columns)} |", "|" + "---|" * (len(columns) + 1)]
    base = {
        f"Δ {name}": one for records in arms.values() for record in records for name, one in _metrics(record).items()
    }
    of_base = [next((one for name, one in base.items() if column.startswith(name)), None) for column in columns]
    values = ["" if one is None else _value_text(one["base"], one["unit"]) for one in of_base]
    lines.append(f"| base | {' | '.join(values)} |")
    lines += [f"| {arm} | {' | '.join(cells.get(one, '') for one in columns)} |" for arm, cells in rows.items()]
    return "\n".join(lines)


def _differences(records: Sequence[Record]) -> dict[str, float]:
    return {name: one["difference"][0] for record in records for name, one in _metrics(record).items()}


def _of_draws(arms: Mapping[str, Sequence[Record]]) -> list[str]:
    """What the draws of shuffled labels change on average, and how much they differ."""
    draws = [_differences(records) for arm, records in arms.items() if arm.startswith(_SHUFFLED)]
    lines = []
    for name in dict.fromkeys(name for one in draws for name in one):
        values = np.array([one[name] for one in draws if name in one])
        if len(values) > 2:
            deviation = values.std(ddof=1)
            lines.append(
                f"- {name}: {values.mean():+.4f} ± {deviation / len(values) ** 0.5:.4f}, "
                f"standard deviation {deviation:.4f} ({len(values)} draws)"
            )
    return ["Shuffled labels, mean of draws ± its standard error", "\n".join(lines)] * bool(lines)


def _correlations(arms: Mapping[str, Sequence[Record]]) -> list[str]:
    """How the changes of the margin of held-out demonstrations rank the arms, against those of benchmarks."""
    changes = [_differences(records) for records in arms.values()]
    margin = f"{HELD_OUT}: {MARGIN}"
    lines = []
    for name in dict.fromkeys(name for one in changes for name in one if name != margin):
        pairs = [(one[margin], one[name]) for one in changes if margin in one and name in one]
        if len(pairs) > 2:
            lines.append(f"- {name}: {spearman(*zip(*pairs, strict=True)):+.2f} ({len(pairs)} methods)")
    return ["Rank correlation (Spearman) of the change of the held-out margin with that of", "\n".join(lines)] * bool(
        lines
    )


def spearman(first: Sequence[float], second: Sequence[float]) -> float:
    """Spearman's rank correlation of two sequences of equal length. Equal values share the mean of their ranks."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return float(np.corrcoef(_ranks(first), _ranks(second))[0, 1])


def _ranks(values: Sequence[float]) -> NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64)
    less = (array[:, None] > array[None]).sum(1)
    equal = (array[:, None] == array[None]).sum(1)
    return less + (equal - 1) / 2


def _chosen(rows: str, halves: Mapping[str, Mapping[str, Sequence[Record]]]) -> list[str]:
    """What the choosing rows choose by the first metric of a benchmark, and what the reporting rows say of it."""
    if "choosing" not in rows:
        return []
    reported = halves.get(rows.replace("choosing", "reporting"), {})
    changes = {arm: _differences(own) for arm, own in halves[rows].items() if not arm.startswith(_CONTROLS)}
    texts = []
    for metric in _CHOOSING:
        candidates = {arm: one[metric] for arm, one in changes.items() if metric in one}
        if not candidates:
            continue
        best = max(candidates, key=lambda arm: candidates[arm])
        text = f"{best} has the highest {metric} on the choosing rows: {100 * candidates[best]:+.1f} points"
        for record in reported.get(best, []):
            for name, one in _metrics(record).items():
                if name == metric:
                    text += f"; on the reporting rows {interval_text(one['difference'], one['unit'], signed=True)}"
        texts.append(f"{text}.")
    return texts
