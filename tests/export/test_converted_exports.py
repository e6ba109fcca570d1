"""Exports of models whose stored tensors transformers converts as it loads them: experts, renamed heads, towers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedModel, PreTrainedTokenizerFast

import sea_export
from sea_export.edit.spectral_edit import SpectralEdit
from sea_export.errors import InputError
from sea_export.export.adapter.adapter_check import check_adapter_weights
from sea_export.model.architecture import layers_with
from sea_export.model.checkpoint import Checkpoint
from sea_export.model.load_model import auto_classes
from sea_export.model.targets import Target
from sea_export.options import EditOptions
from tests.helpers.custom_code_models import logits as logits_of
from tests.helpers.custom_code_models import relative_error
from tests.helpers.family_configs import tiny_family_config
from tests.helpers.messages import naming
from tests.helpers.reference import random_activations
from tests.helpers.tiny_edits import layer_edit
from tests.helpers.tiny_models import VOCABULARY, random_model

pytestmark = pytest.mark.slow

TOKENS = [7, 60, 31, 20, 5, 40, 17, 44]


def edit_of(
    model: PreTrainedModel, *, center: str = "linear", component: str = "mlp", **options: object
) -> SpectralEdit:
    size = model.config.get_text_config().hidden_size
    settings = EditOptions(**{"positive_rank": 3, "negative_rank": 2, **options})
    return SpectralEdit(
        {
            Target(layer, component): (layer_edit(random_activations(60, size, seed=layer), center, settings),)
            for layer in layers_with(model, component)[1:]
        }
    )


@pytest.fixture(scope="session")
def converted(
    tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], tuple[PreTrainedModel, Path]]:
    """Gives the model of a family, and its checkpoint with a tokenizer. Each is made once; read only."""
    made: dict[str, tuple[PreTrainedModel, Path]] = {}

    def make(family: str) -> tuple[PreTrainedModel, Path]:
        if family not in made:
            config = tiny_family_config(family)
            config.get_text_config().vocab_size = VOCABULARY
            config.get_text_config().max_position_embeddings = 256
            model, directory = random_model(config), tmp_path_factory.mktemp(family)
            model.save_pretrained(directory)
            tokenizer.save_pretrained(directory)
            made[family] = model, directory
        return made[family]

    return make


def logits(model: PreTrainedModel | PeftModel) -> torch.Tensor:
    return logits_of(model, TOKENS)


def run_time_logits(model: PreTrainedModel, edit: SpectralEdit) -> torch.Tensor:
    with edit.apply(model):
        return logits(model)


@pytest.mark.parametrize(
    ("family", "format"),
    [
        *(("mixtral", format) for format in ("merged", "adapter", "custom-code")),
        ("gpt_neox", "custom-code"),  # release 5 renames its head
        ("llava", "merged"),
    ],
)
def test_an_export_is_verified(
    family: str, format: str, converted: Callable[[str], tuple[PreTrainedModel, Path]], tmp_path: Path
) -> None:
    """By the command's own verification too, in a process of its own."""
    model, base = converted(family)
    edit = edit_of(model)
    result = sea_export.save(edit, base, tmp_path / "out", format=format)
    assert result.verification is not None
    assert result.verification.passed
    kind = auto_classes(model.config)[0]
    loaded = kind.from_pretrained(tmp_path / "out", trust_remote_code=format == "custom-code")
    assert relative_error(logits(loaded), run_time_logits(model, edit)) < 1e-5


def test_all_experts_are_rewritten_and_nothing_else(converted, tmp_path: Path) -> None:
    model, base = converted("deepseek_v3")
    result = sea_export.save(edit_of(model), base, tmp_path / "out", verify=False)
    layers = [target.layer for target in edit_of(model).targets]
    expected = [
        f"model.layers.{layer}.mlp.{name}.down_proj.weight"
        for layer in layers
        for name in ("shared_experts", *(f"experts.{expert}" for expert in range(4)))
    ]
    assert sorted(result.report.edited) == sorted(expected)


def test_towers_and_projectors_stay_as_they_were(converted, tmp_path: Path) -> None:
    model, base = converted("llava")
    result = sea_export.save(edit_of(model), base, tmp_path / "out", verify=False)
    assert all("language_model" in name and "mlp.down_proj" in name for name in result.report.edited)
    assert any("vision_tower" in name for name in Checkpoint.open(base).tensors)
    assert isinstance(AutoModelForImageTextToText.from_pretrained(tmp_path / "out"), type(model))


# Custom code


@pytest.mark.parametrize("family", ["mixtral", "gpt_neox"])
def test_exported_code_saves_and_loads_again(family: str, converted, tmp_path: Path) -> None:
    """Converting back what was converted, with the edit's tensors among it."""
    model, base = converted(family)
    edit = edit_of(model)
    sea_export.save(edit, base, tmp_path / "out", format="custom-code", verify=False)
    once = AutoModelForCausalLM.from_pretrained(tmp_path / "out", trust_remote_code=True)
    once.save_pretrained(tmp_path / "again")
    twice, report = AutoModelForCausalLM.from_pretrained(
        tmp_path / "again", trust_remote_code=True, output_loading_info=True
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert relative_error(logits(twice), run_time_logits(model, edit)) < 1e-5


def test_buffers_that_the_base_computes_are_computed_by_exported_code(tmp_path: Path) -> None:
    """Falcon-H1's multipliers are in no checkpoint: its own code makes them as it is loaded."""
    config = tiny_family_config("falcon_h1")
    config.ssm_multipliers = [0.5, 0.25, 2.0, 1.5, 0.75]
    model = random_model(config)
    model.save_pretrained(tmp_path / "base")
    edit = edit_of(model)
    sea_export.save(edit, tmp_path / "base", tmp_path / "out", format="custom-code", verify=False)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", trust_remote_code=True)
    for name, buffer in model.named_buffers():
        assert torch.equal(loaded.get_buffer(name), buffer), name


# Adapters of experts


@pytest.mark.parametrize("family", ["mixtral", "deepseek_v3", "llama4_text", "aria_text"])
@pytest.mark.parametrize("merged", [False, True])
def test_an_adapter_of_experts_is_exact_in_peft(family: str, merged: bool, tmp_path: Path) -> None:
    """Llama 4's and Aria's multiply from the right, of which only Aria's say so."""
    model = random_model(tiny_family_config(family))
    model.save_pretrained(tmp_path / "base")
    edit = edit_of(model)
    sea_export.save(edit, tmp_path / "base", tmp_path / "out", format="adapter", verify=False)
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    adapted = PeftModel.from_pretrained(base, tmp_path / "out")
    expected = run_time_logits(model, edit)
    found = logits(adapted.merge_and_unload() if merged else adapted)
    assert relative_error(found, expected) < 1e-5
    assert relative_error(expected, logits(model)) > 1e-2


def test_experts_have_ranks_of_their_own_and_a_cap(converted, tmp_path: Path) -> None:
    model, base = converted("mixtral")
    capped = sea_export.save(edit_of(model), base, tmp_path / "capped", format="adapter", adapter_rank=2)
    assert not capped.verification.exact
    assert 0.05 < capped.verification.weight_error < 1
    scaled = edit_of(model, normalization="calibrated")
    assert sea_export.save(scaled, base, tmp_path / "scaled", format="adapter", adapter_rank=24).verification.passed


def test_a_damaged_adapter_of_experts_is_found(converted, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    from sea_export.export.adapter.adapter_plan import plan_adapter
    from sea_export.export.stored_projections import find_stored_projections
    from sea_export.model.base import open_base

    model, base = converted("mixtral")
    edit = edit_of(model)
    sea_export.save(edit, base, tmp_path / "out", format="adapter", verify=False)
    with open_base(str(base)) as resolved:
        stored = find_stored_projections(edit.targets, resolved, needs_bias=False)
        plan = plan_adapter(edit, resolved, stored, rank=None, load=lambda: model)
        assert not check_adapter_weights(tmp_path / "out", edit, plan).problems
        file = tmp_path / "out" / "adapter_model.safetensors"
        tensors = load_file(file)
        name = next(name for name in tensors if "experts.lora_B" in name)
        tensors[name][:, 1] *= 1.1  # a column of one expert
        save_file(tensors, file, {"format": "pt"})
        (problem,) = check_adapter_weights(tmp_path / "out", edit, plan).problems
    assert "model.layers.1.mlp.experts" in problem


@pytest.mark.parametrize(
    ("family", "options", "facts"),
    [
        (
            "mixtral",
            {"normalization": "calibrated"},
            ["experts", 'normalization="none"', "format="],
        ),
        ("gpt_oss", {}, ["biases", "experts"]),
        ("dbrx", {}, ["experts", "PEFT"]),
        ("laguna", {}, ["PEFT", "shared_experts", "LagunaForCausalLM"]),
    ],
)
def test_what_peft_cannot_hold_is_refused_by_name(family, options, facts, tmp_path: Path) -> None:
    model = random_model(tiny_family_config(family))
    model.save_pretrained(tmp_path / "base")
    with pytest.raises(InputError, match=naming(*facts)):
        sea_export.save(edit_of(model, **options), tmp_path / "base", tmp_path / "out", format="adapter", verify=False)
    assert not (tmp_path / "out").exists()


def test_attention_beside_experts_is_adapted_with_row_scales(tmp_path: Path) -> None:
    """Only the MLPs of such a model are parameters to PEFT."""
    model = random_model(tiny_family_config("mixtral"))
    model.save_pretrained(tmp_path / "base")
    edit = edit_of(model, component="attention", normalization="calibrated")
    sea_export.save(edit, tmp_path / "base", tmp_path / "out", format="adapter", verify=False)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert relative_error(logits(loaded), run_time_logits(model, edit)) < 1e-5


# Constants of affine edits


def test_a_constant_in_the_biases_of_experts_is_exact_or_refused(tmp_path: Path) -> None:
    """GPT-OSS weighs its experts' biases with weights that sum to one; Mixtral has no biases."""
    for family in ("gpt_oss", "mixtral"):
        model = random_model(tiny_family_config(family))
        model.save_pretrained(tmp_path / family)
        edit = edit_of(model, center="affine")
        if family == "mixtral":
            with pytest.raises(InputError, match=naming("experts.down_proj", "bias")):
                sea_export.save(edit, tmp_path / family, tmp_path / "out", verify=False)
            continue
        output = tmp_path / f"{family}-out"
        sea_export.save(edit, tmp_path / family, output, verify=False)
        loaded = AutoModelForCausalLM.from_pretrained(output)
        assert relative_error(logits(loaded), run_time_logits(model, edit)) < 1e-5
        without = SpectralEdit(
            {target: (replace(layer, shift=None),) for target, (layer,) in edit.layers.items()}, provenance={}
        )
        assert relative_error(run_time_logits(model, without), run_time_logits(model, edit)) > 1e-3
