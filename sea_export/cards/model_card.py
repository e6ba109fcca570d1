"""The model card of an edited checkpoint: what it is, how to load it, what was measured, how it was made.

A card is made from the manifest only: the same manifest gives the same card. Its text is in `data/model_card.md`
(`model_cards/template.md` is a link to that file). This module gives the values for the template.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from typing import Any

from huggingface_hub import ModelCard
from jinja2 import Environment, StrictUndefined

from sea_export.cards.base_card import license_warning
from sea_export.cards.card_metadata import (
    MULTIMODAL,
    SPECTRAL,
    card_metadata,
    converted_to,
    hub_base,
    is_fitted,
    is_spectral,
    short_name,
)
from sea_export.cards.edited_text import edit_name, places, tables_of, what_is_changed
from sea_export.cards.effect_text import EXAMPLE_RULE, effect_sentences
from sea_export.cards.extracted_text import extracted_text
from sea_export.cards.imported_text import imported_text
from sea_export.cards.markdown import Markdown, escaped, markdown, python_text, table
from sea_export.cards.programs import programs
from sea_export.demonstrations.tables import is_file_name
from sea_export.evaluation.verdicts import aim_of, verdict_of
from sea_export.export.formats import export_format
from sea_export.export.llama_cpp import llama_cpp_command
from sea_export.export.manifest import fits_of, further_arguments
from sea_export.export.modelfile import MODELFILE
from sea_export.text import interval_text

__all__ = ["model_card"]


def model_card(manifest: Mapping[str, Any]) -> str:
    """The model card, README.md, of a checkpoint.

    Args:
        manifest: the contents of its `sea_export.json`. The snippets of the card load the model from the `repository`
            that it names, else from the directory of the card.
    """
    template = (resources.files("sea_export") / "data" / "model_card.md").read_text(encoding="utf-8")
    environment = Environment(finalize=escaped, undefined=StrictUndefined)
    metadata = Markdown(card_metadata(manifest).to_yaml())
    text = environment.from_string(template).render(card_data=metadata, **_contents(manifest))
    return str(ModelCard(text)) + "\n"


def _contents(manifest: Mapping[str, Any]) -> dict[str, Any]:
    base, verification = manifest["base"], manifest.get("verification")
    format = export_format(manifest["format"])
    adapter = manifest.get("adapter")
    base_model = hub_base(base)
    evaluation = manifest.get("evaluation")
    fits = list(fits_of(manifest["edit"]))
    spectral = is_spectral(manifest)
    added = manifest.get("added_tensors", [])
    heads = [name for name in added if not name.endswith(".bias")]
    edited = manifest["layers"] or manifest.get("weights", ())
    changes = [one["relative_change"] for one in edited if one["relative_change"] is not None]
    return {
        "title": f"{short_name(base)}, {'spectrally ' if spectral else ''}edited",
        "spectral": spectral,
        "edit_name": edit_name(manifest, spectral=spectral),
        "base": _base(base["name"], base_model),
        "on_hub": base["revision"] is not None,
        "chat": bool(base.get("chat")),
        "beside_base": format.loads_beside_base and format.loads_in_transformers,
        "own_code": format.runs_code,
        "converted": converted_to(manifest),
        "folded": bool(manifest["edited_tensors"]),
        "added_biases": len(added) - len(heads),
        "untied": bool(heads),
        "fitted": any(map(is_fitted, fits)),
        "extracted": any("extracted" in fit for fit in fits),
        "here": not manifest.get("repository"),
        "repository": python_text(manifest.get("repository") or "."),
        "multimodal": base["model_class"] == MULTIMODAL,
        "model_class": _identifier(base["model_class"]),
        "arguments": Markdown(further_arguments(manifest)),
        "gguf": _gguf_contents(manifest.get("gguf")),
        "gguf_adapter": manifest.get("gguf_adapter"),
        "llama_cpp": Markdown(llama_cpp_command(manifest) or ""),
        "modelfile": MODELFILE in manifest["files"],
        "depends_on_batch": any(layer["normalization"] == "sequence" for layer in manifest["layers"]),
        **({} if adapter is None else _adapter_contents(adapter)),
        "places": places(manifest),
        "composition": _composition(manifest["edit"]),
        "fits": [_fit_description(fit) for fit in fits],
        "effects": [
            sentence if len(fits) == 1 else f"Edit {number} by itself: {sentence}"
            for number, fit in enumerate(fits, 1)
            if fit.get("effect")
            for sentence in effect_sentences(fit["effect"], fit["options"]["edit"]["strength"])
        ],
        "changes": _range_of(changes) if changes else None,
        "changed": what_is_changed(manifest, spectral=spectral),
        "examples": [example for fit in fits for example in _examples(fit)] if len(fits) == 1 else [],
        "example_rule": EXAMPLE_RULE.format(prompts=_example_count(fits)),
        "programs": programs(manifest, base_model),
        "layers": tables_of(_layer_table(manifest["layers"]), manifest.get("weights", ())),
        "verification": None if verification is None else _verification_text(manifest),
        "effect": None if verification is None else f"{verification['effect']['mean_divergence']:.2g}",
        "evaluation": None if evaluation is None else _evaluation_text(evaluation),
        "damage_measured": any(one["benchmark"] == "damage" for one in (evaluation or {}).get("benchmarks", ())),
        "license": _license_text(base, foreign=any("imported" in fit or "extracted" in fit for fit in fits)),
        "versions": ", ".join(f"{name} {version}" for name, version in manifest["versions"].items()),
        "reproduction": _reproduction_command(manifest),
    }


def _base(name: str, hub_id: str | None) -> Markdown:
    """The name of the base, with a link to it if it is on the Hub, or a copy of what is there."""
    return escaped(name) if hub_id is None else markdown(f"[{{}}](https://huggingface.co/{hub_id})", hub_id)


def _range_of(shares: Sequence[float]) -> str:
    low, high = f"{min(shares):.1%}", f"{max(shares):.1%}"
    return low if low == high else f"{low} to {high}"


def _example_count(fits: Sequence[Mapping[str, Any]]) -> int:
    return int((fits[0].get("examples") or {"prompts": 0})["prompts"])


def _examples(fit: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The answers of the base and of the edited model that are shown."""
    for one in (fit.get("examples") or {"shown": ()})["shown"]:
        yield {
            "prompt": one["prompt"],
            "before": _answer(one["base"], one["base_marks"]),
            "after": _answer(one["edited"], one["edited_marks"]),
        }


def _answer(text: str, marks: Sequence[str]) -> Markdown:
    said = escaped(text) if text else Markdown("*(nothing)*")
    return markdown("{}{}", said, Markdown("".join(f" *({escaped(mark)})*" for mark in marks)))


def _identifier(name: str) -> Markdown:
    """A name as Python code. Raises ValueError if it is none."""
    if not name.isidentifier():
        raise ValueError(f"{name!r} is not the name of a class")
    return Markdown(name)


def _adapter_contents(adapter: Mapping[str, Any]) -> dict[str, Any]:
    errors = [module["relative_error"] for module in adapter["modules"]]
    return {
        "adapter": adapter,
        "megabytes": f"{adapter['bytes'] / 1e6:.3g}",
        "approximation_errors": f"{min(errors):.1%} to {max(errors):.1%}",
        "scaled_strength": "s" if adapter["dial"] == 1 else f"{adapter['dial'] or 0:g} s",
    }


def _gguf_contents(gguf: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """What the card tells of a GGUF file: its types, and how transformers loads it. None for other outputs."""
    if gguf is None:
        return None
    return {
        "types": ", ".join(sorted(set(gguf["types"].values()))),
        "parts": gguf["parts"],
        "config": Markdown(", ".join(f"`{name}={value}`" for name, value in gguf["config"].items())),
    }


def _composition(edit: Mapping[str, Any]) -> str | None:
    """How the baked edit was made of several; None if it is one."""
    if "composed" not in edit:
        return None
    if edit.get("composition") == "sum":
        return "The changes of several edits are added up:"
    return "Several edits are applied one after the other:"


def _fit_description(fit: Mapping[str, Any]) -> Markdown:
    if extracted := fit.get("extracted"):
        return extracted_text(extracted)
    if imported := fit.get("imported"):
        return imported_text(imported)
    demonstrations, options = fit.get("demonstrations"), fit.get("options")
    if not demonstrations or not options:
        return Markdown("The edit does not tell how it was fitted.")
    origin = demonstrations.get("origin")
    source = Markdown("") if origin is None else markdown(" of {}", origin["source"])
    edit, capture = options["edit"], options["capture"]
    if options.get("method", SPECTRAL) == SPECTRAL:
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
        if options.get("damping") is not None:
            own["damping"] = f"{options['damping']:.6g}"
    settings = {
        "layers": options["layers"],
        "target": options["target"],
        **own,
        "centring": options["center"],
        "strength": f"{edit['strength']:.6g}",
        "template": options["template"],
    }
    described = "; ".join(f"{name} {value}" for name, value in settings.items())
    text = "Fitted on {} demonstrations{}: {}.{}"
    return markdown(text, demonstrations["count"], source, described, _choice_of_settings(fit))


def _choice_of_settings(fit: Mapping[str, Any]) -> Markdown:
    """How `tune` chose the settings, if it did. A reader of the metrics must know on which rows they were chosen."""
    tuning = fit.get("tuning")
    if not tuning:
        return Markdown("")
    metric, budget = tuning["metric"], f"within a mean KL of {tuning['max_kl']:g} nats per token"
    rules = {"best": f"for the best {metric} {budget}", "knee": f"at the knee of {metric} over KL, {budget}"}
    rule, rows = rules.get(tuning["pick"], "by hand"), f"{tuning['rows']} rows of {tuning['benchmark']}"
    return markdown(
        " These settings were chosen {}, among {} that were tried on {}: figures on those rows flatter them. "
        "`sea-export tune` itself reports on the others.",
        rule,
        tuning["trials"],
        rows,
    )


def _amount(edit: Mapping[str, Any], kind: str) -> str:
    if edit[f"{kind}_rank"] is not None:
        return f"{edit[f'{kind}_rank']} directions"
    variance = edit[f"{kind}_variance"]
    return f"{edit['explained_variance'] if variance is None else variance:.6g} of the variance"


def _layer_table(layers: Sequence[Mapping[str, Any]]) -> Markdown:
    """A table of the layers, with the columns that say something of one of them; nothing for none."""
    if not layers:
        return Markdown("")
    spectral = any(row["positive_rank"] or row["negative_rank"] for row in layers)
    mapped = any(row.get("map_rank") is not None for row in layers)
    measured = any(row["relative_change"] is not None for row in layers)
    header = (
        "layer",
        *(("directions kept", "directions dropped") if spectral else ()),
        *(("rank",) if mapped else ()),
        "strength",
        *(("relative change",) if measured else ()),
    )
    rows = [
        (
            row["target"],
            *(_directions(row) if spectral else ()),
            *((str(row.get("map_rank") or ""),) if mapped else ()),
            f"{row['strength']:.6g}",
            *((_percent(row["relative_change"]),) if measured else ()),
        )
        for row in layers
    ]
    return table(header, rows)


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.1%}"


def _directions(row: Mapping[str, Any]) -> tuple[str, str]:
    kept, dropped = (_with_share(row[f"{kind}_rank"], row[f"{kind}_variance"]) for kind in ("positive", "negative"))
    return kept, dropped


def _with_share(rank: int, share: float | None) -> str:
    return str(rank) if share is None else f"{rank} ({share:.2%})"


def _verification_text(manifest: Mapping[str, Any]) -> Markdown:
    verification, gguf = manifest["verification"], "gguf" in manifest
    stored = verification["dtype"]
    names = {
        "mathematics": "in memory, in float32",
        "storage": f"as stored, edited weights in {stored}" if gguf else f"as stored, the base in {stored}",
        "base_rounding": f"unedited base, the same weights in {stored}"
        if gguf
        else "unedited base, its edited weights moved within their rounding"
        if verification.get("storage_errors")
        else f"unedited base, computed in {stored}",
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
    figures = table(("compared", "largest logit difference", "mean KL (nats)", "top-1 agreement"), rows)
    reference = (
        "The first two rows compare with the edit applied at run time."
        if verification["exact"]
        else "The first row compares with the edit applied at run time, the second with the export in memory."
    )
    return markdown("{} {}\n\n{}", reference, verification["statement"], figures)


def _evaluation_text(evaluation: Mapping[str, Any]) -> Markdown:
    rows = [
        (report["benchmark"], *_metric_cells(metric))
        for report in evaluation["benchmarks"]
        for metric in report["figures"]
    ]
    counts = ", ".join(
        f"{'a sample of ' if report.get('sampled') else ''}{report['rows']} rows of {report['benchmark']}"
        for report in evaluation["benchmarks"]
    )
    header = ("benchmark", "figure", "better", evaluation["against"], "this model", "difference", "p", "result")
    return markdown(
        "Measured on {}, in {}. In brackets 95 % bootstrap intervals; differences are paired by row, p is of a paired "
        "permutation test. Where the interval of a difference holds 0, or p is above 0.05, there is no measurable "
        "gain.\n\n{}",
        counts,
        evaluation["dtype"],
        table(header, rows),
    )


def _metric_cells(metric: Mapping[str, Any]) -> tuple[str, ...]:
    unit, best, base, value, difference = (metric[key] for key in ("unit", "best", "base", "value", "difference"))
    group = f"{metric['group']}: " if metric["group"] else ""
    return (
        f"{group}{metric['name']}" + (f" ({unit})" if unit else ""),
        aim_of(unit, best, [*value, *(base or ())]),
        Markdown(interval_text(base, unit)),
        Markdown(interval_text(value, unit)),
        Markdown(interval_text(difference, unit, signed=True)),
        "" if metric["p_value"] is None else f"{metric['p_value']:.2g}",
        verdict_of(unit, best, value, base, difference, metric["p_value"]),
    )


_FOREIGN_LICENSE = (
    "What the edit was made from, named above, may have a license of its own, which its files do not tell: find it out "
    "before you share this."
)


def _license_text(base: Mapping[str, Any], *, foreign: bool) -> Markdown:
    """What is known of the license; `foreign` for an edit that comes from somebody else's file or checkpoint."""
    license = base["metadata"].get("license_name") or base["metadata"].get("license")
    if warning := license_warning(base["name"], base["metadata"]):
        text = markdown("**License**: {}.", warning)
    elif license is None:
        text = Markdown(
            "**License**: the files of the base do not tell its license: find it out before you share this."
        )
    else:
        listed_ones = ", ".join(license) if isinstance(license, list) else license
        text = markdown("**License**: that of the base, {}.", listed_ones)
    return Markdown(f"{text} {_FOREIGN_LICENSE}") if foreign else text


def _reproduction_command(manifest: Mapping[str, Any]) -> Markdown | None:
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
    return Markdown(" ".join(command))
