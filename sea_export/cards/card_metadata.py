"""The metadata of a model card: what the Hub indexes a checkpoint by."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from sea_export.demonstrations.tables import hub_dataset
from sea_export.evaluation.benchmark_names import DAMAGE, HELD_OUT
from sea_export.export.formats import export_format
from sea_export.export.manifest import fits_of
from sea_export.model.location import is_hub_id

__all__ = [
    "MULTIMODAL",
    "SPECTRAL",
    "card_metadata",
    "converted_to",
    "hub_base",
    "is_fitted",
    "is_spectral",
    "short_name",
]

MULTIMODAL = "AutoModelForImageTextToText"
SPECTRAL = "spectral"
_BENCHMARK_NAMES = {"truthfulqa": "TruthfulQA", "bbq": "BBQ", "crows-pairs": "CrowS-Pairs"}


def card_metadata(manifest: Mapping[str, Any]) -> ModelCardData:
    """The metadata of the card of a checkpoint.

    Args:
        manifest: the contents of its `sea_export.json`.
    """
    base, format = manifest["base"], export_format(manifest["format"])
    stated = base["metadata"]
    base_model = hub_base(base)
    results = list(_evaluation_results(manifest.get("evaluation")))
    task = "image-text-to-text" if base["model_class"] == MULTIMODAL else "text-generation"
    return ModelCardData(
        base_model=base_model,
        base_model_relation=None if base_model is None else "adapter" if format.loads_beside_base else "finetune",
        license=stated.get("license"),
        license_name=stated.get("license_name"),
        license_link=stated.get("license_link"),
        language=stated.get("language"),
        library_name=format.library,
        pipeline_tag=stated.get("pipeline_tag", task),
        tags=["sea-export", *(["spectral-editing"] if is_spectral(manifest) else []), *format.tags],
        datasets=_datasets(manifest) or None,
        model_name=_model_name(manifest) if results else None,
        eval_results=results or None,
    )


def hub_base(base: Mapping[str, Any]) -> str | None:
    """The Hub id of the base that a manifest names, or of which it is a copy; None if it has none that is known."""
    name = base["name"] if base["revision"] is not None else base.get("hub_id")
    return str(name) if name is not None and is_hub_id(name) else None


def short_name(base: Mapping[str, Any]) -> str:
    """The name of the base that a manifest names, without its organization and without the ending of a file."""
    return str(hub_base(base) or base["name"]).rpartition("/")[2].removesuffix(".gguf")


def converted_to(manifest: Mapping[str, Any]) -> str | None:
    """The dtype to which the weights of the base were converted; None if they are as they were."""
    base = manifest["base"]
    from_gguf = base["name"].endswith(".gguf") and not (manifest.get("gguf") or manifest.get("gguf_adapter"))
    return str(base["dtype"]) if base["dequantized"] or from_gguf else None


def is_fitted(fit: Mapping[str, Any]) -> bool:
    """Whether an edit, or a part of one, was fitted, and neither imported nor extracted.

    Args:
        fit: its provenance.
    """
    return not {"imported", "extracted"} & fit.keys()


def is_spectral(manifest: Mapping[str, Any]) -> bool:
    """Whether a spectral fit made the edit, or a part of it."""
    fits = [fit for fit in fits_of(manifest["edit"]) if is_fitted(fit)]
    return any((fit.get("options") or {}).get("method", SPECTRAL) == SPECTRAL for fit in fits)


def _model_name(manifest: Mapping[str, Any]) -> str:
    edited = "spectrally-edited" if is_spectral(manifest) else "edited"
    repository = manifest.get("repository") or f"{short_name(manifest['base'])}-{edited}"
    return str(repository).rpartition("/")[2]


def _datasets(manifest: Mapping[str, Any]) -> list[str]:
    origins = [(fit.get("demonstrations") or {}).get("origin") for fit in fits_of(manifest["edit"])]
    names = (hub_dataset(origin["source"]) for origin in origins if origin is not None)
    return list(dict.fromkeys(filter(None, names)))


def _evaluation_results(evaluation: Mapping[str, Any] | None) -> Iterator[EvalResult]:
    """The metrics over all rows of a data set. Those of groups, and of samples of the rows, are in the table only."""
    for report in (evaluation or {}).get("benchmarks", ()):
        if report.get("sampled") or report["benchmark"] in (DAMAGE, HELD_OUT):
            continue
        for metric in report["figures"]:
            if metric["group"]:
                continue
            share = metric["unit"] == "%"
            yield EvalResult(
                task_type="text-generation",
                task_name="Text generation",
                dataset_type=re.sub(r"[^\w.-]+", "-", report["benchmark"]),  # the Hub takes no other letters
                dataset_name=_BENCHMARK_NAMES.get(report["benchmark"], report["benchmark"]),
                dataset_args={"rows": report["rows"]},
                metric_type=re.sub(r"\W+", "_", metric["name"].lower()),
                metric_name=f"{metric['name']} ({metric['unit']})" if metric["unit"] else metric["name"],
                metric_value=round(metric["value"][0] * (100 if share else 1), 4),
            )
