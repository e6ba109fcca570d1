"""What becomes of an edit of every decoder-only family that transformers knows.

An outcome is measured: a tiny model is made with random weights and saved, an edit is exported in each format, the
export is loaded by transformers, and its logits are compared with those of the run-time edit. `scripts/families` prints
the outcomes of all families as a table.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)

import sea_export
from sea_export.edit.spectral_edit import SpectralEdit
from sea_export.errors import InputError, SeaExportError
from sea_export.model.architecture import find_output_projections, hidden_size, layers_with
from sea_export.model.load_model import auto_classes
from sea_export.model.targets import COMPONENTS, Target
from tests.helpers.family_configs import tiny_family_config
from tests.helpers.reference import random_activations
from tests.helpers.tiny_edits import layer_edit
from tests.helpers.tiny_models import random_model

FORMATS = ("merged", "adapter", "custom-code")
"""The formats that every base may have."""

MULTIMODAL = (
    "aya_vision",
    "cohere2_vision",
    "idefics3",
    "internvl",
    "lfm2_vl",
    "llava",
    "llava_next",
    "llava_onevision",
    "mistral3",
    "mllama",
    "paligemma",
    "qwen2_vl",
    "qwen2_5_vl",
    "qwen3_5",
    "qwen3_vl",
    "qwen3_vl_moe",
    "smolvlm",
    "video_llava",
    "vipllava",
)
"""Families of `AutoModelForImageTextToText` of which the multimodal model is tried. Gemma 3's is in both mappings."""
FAMILIES = (*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *(f"{name} (multimodal)" for name in MULTIMODAL))
"""What has an outcome: all of `AutoModelForCausalLM`'s mapping, and some of the other."""

EXACT = "exact"
_TOKENS = torch.tensor([[7, 60, 31, 20, 5, 40, 17, 44]])
_TOLERANCE = 1e-5

# What an error names -> the reason in short.
_REASONS = {
    r"\bMLP or an attention block\b": "no MLP and no attention block",
    r"\bshared with\b": "layers share their weights",
    r"\bMLP\b.*\btwo modules\b": "its MLP is in two parts",
    r"\blist of \d+ decoder layers\b": "no single list of layers",
    r"\blinear map that ends\b": "no linear map ends its blocks",
    r"\bof one language model\b": "no single language model",
    r"\brelative error\b": "its experts are followed by a norm within the block",
    r"\bmake a language model\b": "transformers does not load by itself what it saves",
    r"\bexperts\b.*\bPEFT\b.*\bbiases\b": "PEFT holds no biases of experts",
    r"\ball experts in one matrix\b": "PEFT cannot adapt experts in one matrix",
    r"\bPEFT\b.*\bthis tensor adapts\b": "PEFT renames its tensors wrongly",
    r"\btransformers\b.*\bexport\b": "transformers does not export its class",
}


@dataclass(frozen=True)
class Outcome:
    """What becomes of an edit of all MLPs and attention blocks of a family's model."""

    left_out: str | None
    """Why the family is not tried: it is no decoder, or its model cannot be made or run here."""
    formats: tuple[str, ...] = ()
    """For `merged`, `adapter` and `custom-code`: `exact`, or why it is refused."""


def outcome(family: str, directory: Path) -> Outcome:
    """Measures the outcome of a family.

    Args:
        family: one of `FAMILIES`.
        directory: an empty directory to write in.

    Raises:
        AssertionError: an export is not the run-time edit, or the edit does nothing.
    """
    model_type = family.removesuffix(" (multimodal)")
    if model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        return Outcome("a masked language model")
    try:
        config = tiny_family_config(model_type)
        if config.is_encoder_decoder:
            return Outcome("an encoder-decoder")
        if family != model_type:
            config.architectures = [MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES[model_type]]
        torch.manual_seed(0)  # of what a family's own initialization draws
        model = random_model(config)
        base = _logits(model)
    except (ImportError, StrictDataclassError, ValueError) as error:
        return Outcome(f"not made: {_line(error)}")
    model.save_pretrained(directory / "base")
    try:
        edit = _edit(model)
    except InputError as error:
        return Outcome(None, (_reason(error),) * len(FORMATS))
    with edit.apply(model):
        expected = _logits(model)
    assert _distance(expected, base) > 1e-3, "the edit must do something for the test to mean anything"

    def rounding() -> float:
        return _rounding(model, edit, expected)

    return Outcome(None, tuple(_export(edit, directory, format, config, expected, rounding) for format in FORMATS))


def _edit(model: PreTrainedModel) -> SpectralEdit:
    """An edit of all MLPs and, where there are any that can be edited, all attention blocks."""
    targets = [Target(layer, component) for component in COMPONENTS for layer in layers_with(model, component)]
    find_output_projections(model, targets)
    size = hidden_size(model.config)
    return SpectralEdit(
        {
            target: (layer_edit(random_activations(60, size, seed=seed), "linear"),)
            for seed, target in enumerate(targets)
        }
    )


def _export(
    edit: SpectralEdit,
    directory: Path,
    format: str,
    config: PretrainedConfig,
    expected: Tensor,
    rounding: Callable[[], float],
) -> str:
    output = directory / format
    try:
        sea_export.save(edit, directory / "base", output, format=format, verify=False)
    except (InputError, SeaExportError) as error:
        assert not output.exists()
        return _reason(error)
    kind = auto_classes(config)[0]
    loaded = kind.from_pretrained(output, trust_remote_code=format == "custom-code").eval()
    error = _distance(_logits(loaded), expected)
    # Some random models, which loop over their layers, make more of a rounding than that.
    assert error < _TOLERANCE or error < 3 * rounding(), f"{format}: relative error {error:.1e}"
    return EXACT


def _rounding(model: PreTrainedModel, edit: SpectralEdit, expected: Tensor) -> float:
    """What a model makes of one rounding of its weights to float32."""
    generator = torch.Generator().manual_seed(0)
    kept = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1 + torch.finfo(torch.float32).eps * torch.randn(parameter.shape, generator=generator))
        with edit.apply(model):
            rounded = _logits(model)
        for name, parameter in model.named_parameters():
            parameter.copy_(kept[name])
    return _distance(rounded, expected)


@torch.inference_mode()
def _logits(model: PreTrainedModel) -> Tensor:
    return model(input_ids=_TOKENS, use_cache=False).logits


def _distance(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).abs().max() / expected.abs().max())


def _reason(error: Exception) -> str:
    for pattern, reason in _REASONS.items():
        if re.search(pattern, str(error)):
            return f"refused: {reason}"
    raise AssertionError(f"an error that is no reason: {error}") from error


def _line(error: Exception) -> str:
    """What an error says, in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if isinstance(error, StrictDataclassError) else lines[0].partition(". ")[0].removesuffix(".")


def table(outcomes: Mapping[str, Outcome]) -> str:
    """Outcomes as a Markdown table: families of which all formats are exact in one row, then the others."""
    tried = {family: found for family, found in outcomes.items() if found.formats}
    exact = sorted(family for family, found in tried.items() if set(found.formats) == {EXACT})
    rows = [f"| {', '.join(exact)} | {' | '.join([EXACT] * len(FORMATS))} |"] if exact else []
    rows += [
        f"| {family} | {' | '.join(found.formats)} |" for family, found in sorted(tried.items()) if family not in exact
    ]
    left_out: dict[str, list[str]] = {}
    for family, found in sorted(outcomes.items()):
        if found.left_out is not None:
            left_out.setdefault(found.left_out, []).append(family)
    head = [f"| family | {' | '.join(FORMATS)} |", "|---" * (1 + len(FORMATS)) + "|"]
    tail = ["", *(f"- {', '.join(families)}: {reason}." for reason, families in sorted(left_out.items()))]
    return "\n".join([*head, *rows, *tail])
