"""The model card of an edited checkpoint: what it is, how to load it, what was measured, how it was made.

A card is made from the manifest only: the same manifest gives the same card. Its text is in `data/model_card.md`
(`model_cards/template.md` is a link to that file). This module gives the values for the template.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from sea_export.cards.base_card import license_warning
from sea_export.cards.effect_text import effect_sentences
from sea_export.demonstrations.tables import hub_dataset, is_file_name
from sea_export.export.formats import export_format
from sea_export.export.manifest import fits_of, trust_argument
from sea_export.text import interval_text, visible

__all__ = ["model_card"]

_MARKUP = frozenset("\\`*[]<>|#$")
_MULTIMODAL = "AutoModelForImageTextToText"
_HERE = "."
_SPECTRAL = "spectral"
_BENCHMARK_NAMES = {"truthfulqa": "TruthfulQA", "bbq": "BBQ", "crows-pairs": "CrowS-Pairs", "damage": "neutral text"}
_COMPONENT_NAMES = {"mlp": "MLP blocks", "attention": "attention blocks"}


def model_card(manifest: Mapping[str, Any]) -> str:
    """The model card, README.md, of a checkpoint.

    Args:
        manifest: the contents of its `sea_export.json`. The snippets of the card load the model from the `repository`
            that it names, else from the directory of the card.
    """
    template = (resources.files("sea_export") / "data" / "model_card.md").read_text(encoding="utf-8")
    return str(ModelCard.from_template(_metadata(manifest), template_str=template, **_contents(manifest))) + "\n"


# Metadata


def _metadata(manifest: Mapping[str, Any]) -> ModelCardData:
    base, format = manifest["base"], export_format(manifest["format"])
    stated = base["metadata"]
    on_hub = base["revision"] is not None
    results = list(_evaluation_results(manifest.get("evaluation")))
    task = "image-text-to-text" if base["model_class"] == _MULTIMODAL else "text-generation"
    return ModelCardData(
        base_model=base["name"] if on_hub else None,
        base_model_relation=("adapter" if format.loads_beside_base else "finetune") if on_hub else None,
        license=stated.get("license"),
        license_name=stated.get("license_name"),
        license_link=stated.get("license_link"),
        language=stated.get("language"),
        library_name=format.library,
        pipeline_tag=stated.get("pipeline_tag", task),
        tags=["sea-export", *(["spectral-editing"] if _is_spectral(manifest) else []), *format.tags],
        datasets=_datasets(manifest) or None,
        model_name=_model_name(manifest) if results else None,
        eval_results=results or None,
    )


def _is_spectral(manifest: Mapping[str, Any]) -> bool:
    methods = {(fit.get("options") or {}).get("method", _SPECTRAL) for fit in fits_of(manifest["edit"])}
    return _SPECTRAL in methods


def _model_name(manifest: Mapping[str, Any]) -> str:
    repository = manifest.get("repository") or f"{manifest['base']['name']}-spectrally-edited"
    return str(repository).rpartition("/")[2]


def _datasets(manifest: Mapping[str, Any]) -> list[str]:
    origins = [(fit.get("demonstrations") or {}).get("origin") for fit in fits_of(manifest["edit"])]
    names = (hub_dataset(origin["source"]) for origin in origins if origin is not None)
    return list(dict.fromkeys(filter(None, names)))


def _evaluation_results(evaluation: Mapping[str, Any] | None) -> Iterator[EvalResult]:
    """The metrics over all rows. Those of groups are in the table only."""
    for report in (evaluation or {}).get("benchmarks", ()):
        for metric in report["figures"]:
            if metric["group"]:
                continue
            share = metric["unit"] == "%"
            yield EvalResult(
                task_type="text-generation",
                task_name="Text generation",
                dataset_type=report["benchmark"],
                dataset_name=_BENCHMARK_NAMES.get(report["benchmark"], report["benchmark"]),
                dataset_args={"rows": report["rows"]},
                metric_type=re.sub(r"\W+", "_", metric["name"].lower()),
                metric_name=f"{metric['name']} ({metric['unit']})" if metric["unit"] else metric["name"],
                metric_value=round(metric["value"][0] * (100 if share else 1), 4),
            )


# The values for the template


def _contents(manifest: Mapping[str, Any]) -> dict[str, Any]:
    base, verification = manifest["base"], manifest.get("verification")
    format = export_format(manifest["format"])
    adapter = manifest.get("adapter")
    on_hub = base["revision"] is not None
    evaluation = manifest.get("evaluation")
    fits = list(fits_of(manifest["edit"]))
    spectral = _is_spectral(manifest)
    return {
        "title": f"{_plain(base['name'].rpartition('/')[2])}, {'spectrally ' if spectral else ''}edited",
        "spectral": spectral,
        "edit_name": "a spectral edit of its activations (SEA)" if spectral else "an edit of its activations",
        "base": f"[{base['name']}](https://huggingface.co/{base['name']})" if on_hub else _plain(base["name"]),
        "on_hub": on_hub,
        "beside_base": format.loads_beside_base,
        "own_code": format.runs_code,
        "repository": manifest.get("repository") or _HERE,
        "multimodal": base["model_class"] == _MULTIMODAL,
        "model_class": base["model_class"],
        "trust": trust_argument(manifest),
        "depends_on_batch": any(layer["normalization"] == "sequence" for layer in manifest["layers"]),
        **({} if adapter is None else _adapter_contents(adapter)),
        "places": _edited_targets(manifest["layers"]),
        "fits": [_fit_description(fit) for fit in fits],
        "effects": [
            _plain(sentence if len(fits) == 1 else f"Edit {number} by itself: {sentence}")
            for number, fit in enumerate(fits, 1)
            if fit.get("effect")
            for sentence in effect_sentences(fit["effect"], fit["options"]["edit"]["strength"])
        ],
        "layers": _layer_table(manifest["layers"]),
        "verification": None if verification is None else _verification_text(verification),
        "effect": None if verification is None else f"{verification['effect']['mean_divergence']:.2g}",
        "evaluation": None if evaluation is None else _evaluation_text(evaluation),
        "damage_measured": any(one["benchmark"] == "damage" for one in (evaluation or {}).get("benchmarks", ())),
        "license": _license_text(base),
        "versions": ", ".join(f"{name} {version}" for name, version in manifest["versions"].items()),
        "reproduction": _reproduction_command(manifest),
    }


def _adapter_contents(adapter: Mapping[str, Any]) -> dict[str, Any]:
    errors = [module["relative_error"] for module in adapter["modules"]]
    return {
        "adapter": adapter,
        "megabytes": f"{adapter['bytes'] / 1e6:.3g}",
        "approximation_errors": f"{min(errors):.1%} to {max(errors):.1%}",
        "scaled_strength": "s" if adapter["dial"] == 1 else f"{adapter['dial'] or 0:g} s",
    }


def _edited_targets(layers: Sequence[Mapping[str, Any]]) -> str:
    targets = dict.fromkeys(tuple(row["target"].split(".")) for row in layers)
    parts = []
    for component, name in _COMPONENT_NAMES.items():
        numbers = [int(layer) for layer, edited in targets if edited == component]
        if numbers:
            parts.append(f"the {name} of layer{'s' if len(numbers) > 1 else ''} {_ranges(numbers)}")
    return f"What is edited is the output of {' and '.join(parts)}, counted from 0."


def _ranges(numbers: Sequence[int]) -> str:
    """`1, 3-5` for [1, 3, 4, 5]."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def _fit_description(fit: Mapping[str, Any]) -> str:
    demonstrations, options = fit.get("demonstrations"), fit.get("options")
    if not demonstrations or not options:
        return "The edit does not tell how it was fitted."
    origin = demonstrations.get("origin")
    source = "" if origin is None else f" of {_plain(origin['source'])}"
    edit, capture = options["edit"], options["capture"]
    if options.get("method", _SPECTRAL) == _SPECTRAL:
        own = {
            "kept": _amount(edit, "positive"),
            "dropped": _amount(edit, "negative"),
            "projections": edit["projections"],
            "normalization": edit["normalization"],
            "feature function": options["feature_function"],
            "read at": f"{capture['site']}, {capture['position']} token",
            "neutral": capture["neutral"],
        }
    else:
        form = options["form"]
        own = {"method": options["method"], "form": f"{form} {options['rank']}" if form == "low-rank" else form}
    settings = {
        "layers": options["layers"],
        "target": options["target"],
        **own,
        "centring": options["center"],
        "strength": f"{edit['strength']:.6g}",
        "template": options["template"],
    }
    described = "; ".join(f"{name} {value}" for name, value in settings.items())
    return f"Fitted on {demonstrations['count']} demonstrations{source}: {described}.{_choice_of_settings(fit)}"


def _choice_of_settings(fit: Mapping[str, Any]) -> str:
    """How `tune` chose the settings, if it did. A reader of the metrics must know on which rows they were chosen."""
    tuning = fit.get("tuning")
    if not tuning:
        return ""
    metric, budget = _plain(tuning["metric"]), f"within a mean KL of {tuning['max_kl']:g} nats per token"
    rules = {"best": f"for the best {metric} {budget}", "knee": f"at the knee of {metric} over KL, {budget}"}
    rule, rows = rules.get(tuning["pick"], "by hand"), f"{tuning['rows']} rows of {_plain(tuning['benchmark'])}"
    return (
        f" These settings were chosen {rule}, among {tuning['trials']} that were tried on {rows}: figures on those "
        "rows flatter them. `sea-export tune` itself reports on the others."
    )


def _amount(edit: Mapping[str, Any], kind: str) -> str:
    if edit[f"{kind}_rank"] is not None:
        return f"{edit[f'{kind}_rank']} directions"
    variance = edit[f"{kind}_variance"]
    return f"{edit['explained_variance'] if variance is None else variance:.6g} of the variance"


def _layer_table(layers: Sequence[Mapping[str, Any]]) -> str:
    """A table of the layers, with the columns that say something of one of them."""
    spectral = any(row["positive_variance"] is not None for row in layers)
    mapped = any(row.get("map_rank") is not None for row in layers)
    header = (
        "layer",
        *(("directions kept", "directions dropped") if spectral else ()),
        *(("rank",) if mapped else ()),
        "strength",
        "relative change",
    )
    rows = [
        (
            row["target"],
            *(_directions(row) if spectral else ()),
            *((str(row.get("map_rank") or ""),) if mapped else ()),
            f"{row['strength']:.6g}",
            f"{row['relative_change']:.1%}",
        )
        for row in layers
    ]
    return _table(header, rows)


def _directions(row: Mapping[str, Any]) -> tuple[str, str]:
    kept, dropped = (_with_share(row[f"{kind}_rank"], row[f"{kind}_variance"]) for kind in ("positive", "negative"))
    return kept, dropped


def _with_share(rank: int, share: float | None) -> str:
    return str(rank) if share is None else f"{rank} ({share:.2%})"


def _verification_text(verification: Mapping[str, Any]) -> str:
    names = {
        "mathematics": "in memory, in float32",
        "storage": f"as stored, the base in {verification['dtype']}",
        "base_rounding": f"unedited base, computed in {verification['dtype']}",
        "effect": "the edit itself, against the base",
    }
    rows = [
        (
            name,
            f"{verification[key]['max_logit_difference']:.1e}",
            f"{verification[key]['mean_divergence']:.1e}",
            f"{verification[key]['equal_greedy']:.1%}",
        )
        for key, name in names.items()
    ]
    table = _table(("compared", "largest logit difference", "mean KL (nats)", "top-1 agreement"), rows)
    reference = (
        "The first two rows compare with the edit applied at run time."
        if verification["exact"]
        else "The first row compares with the edit applied at run time, the second with the export in memory."
    )
    return f"{reference} {verification['statement']}\n\n{table}"


def _evaluation_text(evaluation: Mapping[str, Any]) -> str:
    rows = [
        (_plain(report["benchmark"]), *_metric_cells(metric))
        for report in evaluation["benchmarks"]
        for metric in report["figures"]
    ]
    counts = ", ".join(f"{report['rows']} rows of {_plain(report['benchmark'])}" for report in evaluation["benchmarks"])
    header = ("benchmark", "figure", _plain(evaluation["against"]), "this model", "difference", "p")
    return (
        f"Measured on {counts}, in {evaluation['dtype']}. In brackets 95 % bootstrap "
        f"intervals; differences are paired by row, p is of a paired permutation test.\n\n{_table(header, rows)}"
    )


def _metric_cells(metric: Mapping[str, Any]) -> tuple[str, ...]:
    unit = metric["unit"]
    group = f"{_plain(metric['group'])}: " if metric["group"] else ""
    return (
        f"{group}{_plain(metric['name'])}" + (f" ({unit})" if unit else ""),
        interval_text(metric["base"], unit),
        interval_text(metric["value"], unit),
        interval_text(metric["difference"], unit, signed=True),
        "" if metric["p_value"] is None else f"{metric['p_value']:.2g}",
    )


def _license_text(base: Mapping[str, Any]) -> str:
    if warning := license_warning(base["name"], base["metadata"]):
        return f"**License**: {warning}."
    license = base["metadata"].get("license_name") or base["metadata"].get("license")
    if license is None:
        return "**License**: the files of the base do not tell its license: find it out before you share this."
    return f"**License**: that of the base, `{license}`."


def _reproduction_command(manifest: Mapping[str, Any]) -> str | None:
    """The command that repeats the run; None if the manifest does not say how it was fitted."""
    fits = list(fits_of(manifest["edit"]))
    if not all("options" in fit and "demonstrations" in fit for fit in fits):
        return None
    command = ["sea-export reproduce sea_export.json OUTPUT"]
    if manifest["base"]["revision"] is None:
        command.append("--base BASE")
    for fit in fits:
        origin = fit["demonstrations"].get("origin")
        if origin is None or is_file_name(origin["source"]):
            command.append("--demonstrations FILE")
    if manifest["export"]["trust_remote_code"]:
        command.append("--trust-remote-code")
    return " ".join(command)


def _plain(text: str) -> str:
    """A name of unknown origin as Markdown that shows it in one line, without any markup."""
    line = visible(" ".join(text.split()))
    return "".join(f"\\{character}" if character in _MARKUP else character for character in line)


def _table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(str(cell) for cell in line)} |" for line in lines)
