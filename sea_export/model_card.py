"""The model card of an edited checkpoint: what it is, how to load it, what was measured, how it was made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.errors import HfHubHTTPError
from yaml import YAMLError

from sea_export.evaluation.report import interval_text

__all__ = ["CARD", "write_model_card"]

CARD = "README.md"
"""Name of the file."""

_MAXIMUM_CARD_BYTES = 1_000_000

_TEMPLATE = """---
{metadata}
---

# {title}

{introduction}

## What was edited

{edited}

## Is it the edit it claims to be?

{verification}

## What it gains and costs

{evaluation}

## Limits

A spectral edit moves a model's answers towards the kind of completion that its demonstrations call good. It does not
make a model truthful or fair: measure it on your own task, beside the base model, before you rely on it. The base
model's limits and terms of use hold here too.

## How it was made

`sea_export.json` names the base, the demonstrations' digest, every option and every library version; `sea_edit/` holds
the edit itself.

```bibtex
@inproceedings{{qiu2024spectral,
  title = {{Spectral Editing of Activations for Large Language Model Alignment}},
  author = {{Qiu, Yifu and Zhao, Zheng and Ziser, Yftah and Korhonen, Anna and Ponti, Edoardo M. and Cohen, Shay B.}},
  booktitle = {{Advances in Neural Information Processing Systems}},
  year = {{2024}}
}}
```
"""

_MERGED = """\
{base} with a spectral edit of its activations (SEA) folded into its weights. It has the original architecture,
tensor names and files, and loads wherever the original loads.

```python
from transformers import pipeline

generate = pipeline("text-generation", "PATH_OR_REPOSITORY_OF_THIS_CHECKPOINT")
print(generate("Q: What happens if you swallow chewing gum?\\nA:")[0]["generated_text"])
```"""

_ADAPTER = """\
A PEFT adapter ({kind}, {megabytes:.3g} MB) that puts a spectral edit of its activations (SEA) on {base}.

```python
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("PATH_OR_REPOSITORY_OF_THIS_ADAPTER")  # the base with it; needs peft
```

The tokenizer is the base's. `PeftModel.from_pretrained` puts the adapter on a base that is loaded already.

{notes}"""

_CUSTOM_CODE = """\
{base} with a spectral edit of its activations (SEA), applied at run time. The weights of {base} are in this checkpoint
as they were, the tensors of the edit beside them.

```python
from transformers import pipeline

generate = pipeline("text-generation", "PATH_OR_REPOSITORY_OF_THIS_CHECKPOINT", trust_remote_code=True)
print(generate("Q: What happens if you swallow chewing gum?\\nA:")[0]["generated_text"])
```

The edit is applied by code, so loading needs `trust_remote_code=True`, and fails without it rather than load the model
unedited. The code is in `modeling_sea.py`: it is short, imports torch and transformers only, and is there to be read.
The tokenizer is the base's own, and loads with the same flag.{notes}"""

_SEQUENCE = """

Its normalization takes norms over all tokens of a forward call: results depend on the batch, on padding and on later
tokens, and generation with a cache differs from generation without."""

_DIAL = """Its scale stays a dial: at scale s it equals the edit of strength {strength}, and at 0 the base.

```python
from peft.tuners.lora import LoraLayer

for module in model.modules():
    if isinstance(module, LoraLayer):
        module.set_scale("default", 0.5)
```"""


def write_model_card(directory: Path, base_directory: Path, manifest: Mapping[str, Any]) -> None:
    """Writes README.md into `directory`.

    Args:
        directory: where the checkpoint is being written.
        base_directory: the base's files, whose model card tells license and language.
        manifest: the contents of `sea_export.json`.
    """
    base = manifest["base"]["name"]
    inherited = _base_metadata(base_directory)
    data = ModelCardData(
        base_model=base if "/" in base else None,
        license=inherited.get("license"),
        license_name=inherited.get("license_name"),
        license_link=inherited.get("license_link"),
        language=inherited.get("language"),
        library_name="peft" if manifest["format"] == "adapter" else "transformers",
        base_model_relation="adapter" if manifest["format"] == "adapter" else None,
        pipeline_tag="text-generation",
        tags=["sea-export", "spectral-editing"],
    )
    content = _TEMPLATE.format(
        metadata=data.to_yaml().strip(),
        title=f"{base.rpartition('/')[2]}, spectrally edited",
        introduction=_introduction(
            manifest, f"[{base}](https://huggingface.co/{base})" if "/" in base else f"`{base}`"
        ),
        edited=_table(
            ("layer", "directions kept", "directions dropped", "relative change"),
            [
                (row["target"], row["positive_rank"], row["negative_rank"], f"{row['relative_change']:.1%}")
                for row in manifest["layers"]
            ],
        ),
        verification=_verification_table(manifest.get("verification")),
        evaluation=_evaluation_table(manifest.get("evaluation")),
    )
    (directory / CARD).write_text(content, encoding="utf-8")


def _introduction(manifest: Mapping[str, Any], base: str) -> str:
    if manifest["format"] == "merged":
        return _MERGED.format(base=base)
    if manifest["format"] == "custom-code":
        depends = any(layer["normalization"] == "sequence" for layer in manifest["layers"])
        return _CUSTOM_CODE.format(base=base, notes=_SEQUENCE if depends else "")
    adapter = manifest["adapter"]
    notes = "\n\n".join(_adapter_notes(manifest))
    return _ADAPTER.format(kind=adapter["kind"], megabytes=adapter["bytes"] / 1e6, base=base, notes=notes)


def _adapter_notes(manifest: Mapping[str, Any]) -> list[str]:
    adapter = manifest["adapter"]
    notes = []
    if adapter["exact"]:
        notes.append("It computes the edit exactly, but for rounding in float32.")
    else:
        errors = [module["relative_error"] for module in adapter["modules"]]
        notes.append(
            f"It is the best approximation of rank {adapter['rank_cap']} to the edit, and not the edit: the change of "
            f"each weight is off by {min(errors):.1%} to {max(errors):.1%} of its norm."
        )
    if adapter["kind"] != "LoRA":
        notes.append("Programs that read plain LoRA only (vLLM, llama.cpp) do not load it.")
    if adapter["replaces_biases"]:
        notes.append("It replaces biases of the base: to be rid of it, load the base anew.")
    if adapter["dial"] is not None:
        notes.append(_DIAL.format(strength="s" if adapter["dial"] == 1 else f"{adapter['dial']:g} s"))
    return notes


def _base_metadata(base_directory: Path) -> dict[str, Any]:
    readme = base_directory / CARD
    if not readme.is_file() or readme.stat().st_size > _MAXIMUM_CARD_BYTES:
        return {}
    try:
        metadata = ModelCard.load(readme).data.to_dict()
    except (ValueError, TypeError, RecursionError, YAMLError, HfHubHTTPError):
        return {}  # a base card without valid metadata says nothing that could be inherited
    return {key: value for key, value in metadata.items() if _is_text(value)}


def _is_text(value: object) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(one, str) for one in value))


def _verification_table(verification: Mapping[str, Any] | None) -> str:
    if verification is None:
        return "Not verified when it was written: run `sea-export verify`."
    names = {
        "mathematics": "in memory, in float32",
        "storage": f"as stored, the base in {verification['dtype']}",
        "base_rounding": f"unedited base, computed in {verification['dtype']}",
        "effect": "the edit itself, against the base",
    }
    table = _table(
        ("compared", "largest logit difference", "mean KL (nats)", "equal greedy tokens"),
        [
            (
                name,
                f"{verification[key]['max_logit_difference']:.1e}",
                f"{verification[key]['mean_divergence']:.1e}",
                f"{verification[key]['equal_greedy']:.1%}",
            )
            for key, name in names.items()
        ],
    )
    reference = (
        "The first two rows compare with the edit applied at run time."
        if verification["exact"]
        else "The first row compares with the edit applied at run time, the second with the export in memory."
    )
    return f"{reference} {verification['statement']}\n\n{table}"


def _evaluation_table(evaluation: Mapping[str, Any] | None) -> str:
    if evaluation is None:
        return "Not evaluated: `sea-export evaluate` does that, and with `--record` its figures stand here."
    rows = [
        (report["benchmark"], *_figure_cells(figure))
        for report in evaluation["benchmarks"]
        for figure in report["figures"]
    ]
    counts = ", ".join(f"{report['rows']} rows of {report['benchmark']}" for report in evaluation["benchmarks"])
    header = ("benchmark", "figure", f"{evaluation['against']}", "this model", "difference", "p")
    return (
        f"Measured on {counts}, in {evaluation['dtype']}. In brackets 95 % bootstrap "
        f"intervals; differences are paired by row, p is of a paired permutation test.\n\n{_table(header, rows)}"
    )


def _figure_cells(figure: Mapping[str, Any]) -> tuple[str, ...]:
    unit = figure["unit"]
    group = f"{figure['group']}: " if figure["group"] else ""
    return (
        f"{group}{figure['name']}" + (f" ({unit})" if unit else ""),
        interval_text(figure["base"], unit),
        interval_text(figure["value"], unit),
        interval_text(figure["difference"], unit, signed=True),
        "" if figure["p_value"] is None else f"{figure['p_value']:.2g}",
    )


def _table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(str(cell) for cell in line)} |" for line in lines)
