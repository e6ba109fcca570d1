"""The tables that `benchmark_methods` prints of its results."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from method_results import DAMAGE, Record, difference_on_same_rows, pooled
from numpy.typing import NDArray

from sea_export.evaluation.demonstration_margins import HELD_OUT, MARGIN
from sea_export.text import interval_text

_Arms = dict[str, list[Record]]

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
# The method that others are compared with.
_DEFAULT = "spectral"
# How the names of arms begin that are no method, and are not chosen.
_SHUFFLED = "shuffled labels"
_CONTROLS = ("random direction", "turned sign", _SHUFFLED)


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
        halves = {**halves, **_both_halves(halves)}
        for rows, measured in halves.items() or [("", {arm: [] for arm in arms})]:
            together = {arm: [*own, *measured[arm]] for arm, own in arms.items() if arm in measured}
            texts += [f"{title}{rows}", _table(together), *_against_default(together)]
            texts += [*_of_draws(together), *_correlations(together)]
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


def _both_halves(halves: Mapping[str, _Arms]) -> dict[str, _Arms]:
    """The rows of both halves together, for arms that were measured on both."""
    found: dict[str, _Arms] = {}
    for rows, arms in halves.items():
        reported = halves.get(rows.replace("choosing", "reporting"), {})
        for arm, records in arms.items() if "choosing" in rows else ():
            pairs = [(one, other) for one in records for other in reported.get(arm, ()) if _same_benchmark(one, other)]
            if pairs:
                own = found.setdefault(rows.replace("choosing rows", "rows of both halves"), {})
                own[arm] = [pooled(one, other) for one, other in pairs]
    return found


def _same_benchmark(one: Record, other: Record) -> bool:
    return bool(one["settings"]["what"] == other["settings"]["what"])


def _against_default(arms: Mapping[str, Sequence[Record]]) -> list[str]:
    """How metrics of each method differ from those of the spectral edit, on the same rows."""
    default = {name: one for record in arms.get(_DEFAULT, ()) for name, one in _metrics(record).items()}
    lines = []
    for arm, records in arms.items() if default else ():
        for name, one in [(name, one) for record in records for name, one in _metrics(record).items()]:
            if arm != _DEFAULT and "rows" in one and "rows" in default.get(name, {}):
                difference = difference_on_same_rows(one, default[name])
                lines.append(f"- {arm}, {name}: {interval_text(difference, one['unit'], signed=True)}")
    return [f"Difference from {_DEFAULT}, on the same rows", "\n".join(lines)] * bool(lines)


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
