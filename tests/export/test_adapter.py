"""An adapter on its base computes the edit, in transformers and in PEFT, and says so where it is an approximation."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

import sea_export
from sea_export.edit.features import FeatureFunction
from sea_export.edit.fold import fold_parameters
from sea_export.edit.layer_edit import LayerEdit
from sea_export.edit.spectral_edit import SpectralEdit
from sea_export.errors import InputError, SeaExportError
from sea_export.export.adapter.adapter_check import check_adapter_weights, with_adapter
from sea_export.export.adapter.adapter_plan import AdapterPlan, plan_adapter
from sea_export.export.adapter.build import Adapter, build_adapter
from sea_export.export.merged.merge_plan import check_unquantized
from sea_export.export.stored_projections import find_stored_projections
from sea_export.fitting.spectrum import SpectrumFitter
from sea_export.fitting.truncate import build_layer_edit
from sea_export.model.architecture import find_output_projections
from sea_export.model.base import Base, open_base
from sea_export.model.checkpoint import Checkpoint
from sea_export.model.targets import Target
from sea_export.options import EditOptions, ExportOptions
from sea_export.verification.compare import Agreement
from tests.helpers.messages import assert_names, naming
from tests.helpers.parameters import slow_but
from tests.helpers.reference import random_activations
from tests.helpers.tampering import forged
from tests.helpers.tiny_edits import SIZE, layer_edit
from tests.helpers.tiny_models import random_model, tiny_config, tiny_model

PROMPT = torch.tensor([[7, 60, 31, 200, 5, 90, 17, 44]])
TARGETS = (Target(1, "mlp"), Target(3, "mlp"))


def edit_of(targets: tuple[Target, ...] = TARGETS, *, center: str = "off", **options: object) -> SpectralEdit:
    """An edit whose ranks differ between its targets."""
    layers = {}
    for seed, target in enumerate(targets):
        settings = EditOptions(**{"positive_rank": 2 + seed, "negative_rank": 3, **options})
        layers[target] = (layer_edit(random_activations(60, SIZE, seed=seed), center, settings),)
    return SpectralEdit(layers)


def logits(model: PreTrainedModel | PeftModel) -> torch.Tensor:
    with torch.inference_mode():
        return model(PROMPT).logits


def run_time_logits(model: PreTrainedModel, edit: SpectralEdit) -> torch.Tensor:
    with edit.apply(model):
        return logits(model)


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return float((actual - expected).abs().max() / expected.abs().max())


def adapter_of(model: PreTrainedModel, edit: SpectralEdit, rank: int | None = None) -> Adapter:
    parameters = dict(model.named_parameters())
    projections = find_output_projections(model, edit.targets)
    return build_adapter(edit, projections, lambda name: parameters[name].detach(), base="org/base", rank=rank)


def save(edit: SpectralEdit, base: Path, output: Path, **options: object) -> sea_export.SaveResult:
    return sea_export.save(edit, base, output, **{"format": "adapter", "verify": False, **options})


def adapted_weights(model: PreTrainedModel, adapter: Adapter) -> dict[str, torch.Tensor]:
    """W + B A by module, (d, m) float64."""
    weights = {}
    for module in adapter.modules:
        a, b = (adapter.tensors[f"base_model.model.{module.module}.lora_{side}.weight"].double() for side in "AB")
        weights[module.module] = model.get_parameter(f"{module.module}.weight").detach().double() + b @ a
    return weights


# It computes the edit


VARIANTS: dict[str, Callable[[], SpectralEdit]] = {
    "none": edit_of,
    "average": lambda: edit_of(normalization="average"),
    "calibrated": lambda: edit_of(normalization="calibrated"),
    "linear": lambda: edit_of(center="linear"),
    "linear, calibrated": lambda: edit_of(center="linear", normalization="calibrated"),
    "affine": lambda: edit_of(center="affine"),
    "affine, calibrated": lambda: edit_of(center="affine", normalization="calibrated"),
    "keeping a part": lambda: edit_of(projections="positive", strength=0.5, negative_rank=None),
    "both": lambda: edit_of((Target(0, "attention"), Target(2, "attention"), Target(2, "mlp"))),
    "composed": lambda: sea_export.compose([edit_of(), edit_of((Target(2, "mlp"), Target(3, "mlp")))]),
    "composed, scaled": lambda: sea_export.compose([edit_of(normalization="calibrated"), edit_of(center="linear")]),
}
METHODS: dict[str, dict[str, object]] = {
    "bias": {"method": "gradient"},
    "bias, read": {"method": "natural-gradient", "center": "linear", "strength": 0.5},
    "linear map": {"method": "natural-gradient", "form": "linear", "strength": 0.1},
    "map of low rank": {"method": "gradient", "form": "low-rank", "rank": 3},
    "mean difference": {"method": "mean-difference"},
    "erasure": {"method": "erasure"},
}
WITHOUT_BIAS = ("llama", "qwen3")


@pytest.mark.parametrize("method", slow_but(["bias"], METHODS))
@pytest.mark.parametrize("family", slow_but(["llama"], ["llama", "llama-bias", "gpt2"]))
def test_every_method_becomes_an_adapter(
    family: str,
    method: str,
    fit_tiny: Callable[..., SpectralEdit],
    tiny_checkpoint_of: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    model = tiny_model(family)
    edit = fit_tiny(model, **METHODS[method])
    save(edit, tiny_checkpoint_of(family), tmp_path / "out")
    expected = run_time_logits(model, edit)
    assert relative_error(logits(model), expected) > 1e-2, "the edit must do something for the test to mean anything"
    assert relative_error(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "out")), expected) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("family", ["llama", "llama-bias", "gpt2", "qwen3"])
def test_loads_by_its_directory_alone_and_computes_the_edit(
    family: str, variant: str, tiny_checkpoint_of: Callable[[str], Path], tmp_path: Path
) -> None:
    edit, model, base, output = VARIANTS[variant](), tiny_model(family), tiny_checkpoint_of(family), tmp_path / "out"
    if family in WITHOUT_BIAS and variant == "affine, calibrated":
        with pytest.raises(InputError, match=naming("model.layers.1.mlp.down_proj", 'center="linear"')):
            save(edit, base, output)
        assert not output.exists()
        return
    save(edit, base, output)
    expected = run_time_logits(model, edit)
    assert relative_error(logits(model), expected) > 1e-2, "the edit must do something for the test to mean anything"
    assert relative_error(logits(AutoModelForCausalLM.from_pretrained(output)), expected) < 1e-5
    adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), output)
    assert relative_error(logits(adapted), expected) < 1e-5
    if family in WITHOUT_BIAS and variant == "affine":
        with pytest.raises(RuntimeError, match="base layer has no bias"):
            adapted.merge_and_unload()
    else:
        assert relative_error(logits(adapted.merge_and_unload()), expected) < 1e-5


def test_rank_and_scale_are_held_in_the_form_that_can_hold_them(llama: PreTrainedModel) -> None:
    plain, scaled = adapter_of(llama, edit_of()), adapter_of(llama, edit_of(normalization="average"))
    affine = adapter_of(llama, edit_of(center="affine"))
    assert [(adapter.config["use_dora"], adapter.config["lora_bias"]) for adapter in (plain, scaled, affine)] == [
        (False, False),
        (True, False),
        (False, True),
    ]
    assert [module.exact_rank for module in plain.modules] == [5, 6]
    assert all(adapter.exact for adapter in (plain, scaled, affine))


def test_saved_keys_are_those_of_a_model_made_from_the_config(
    tiny_checkpoint_of: Callable[[str], Path], tmp_path: Path
) -> None:
    for family in ("llama", "gpt2"):
        for name in ("none", "calibrated", "affine", "both"):
            output = tmp_path / f"{family}-{name}"
            save(VARIANTS[name](), tiny_checkpoint_of(family), output)
            config = PeftConfig.from_pretrained(output)
            assert isinstance(config, LoraConfig)
            model = get_peft_model(random_model(tiny_config(family)), config)
            expected = {key: tensor.shape for key, tensor in get_peft_model_state_dict(model).items()}
            saved = load_file(output / "adapter_model.safetensors")
            # PEFT leaves ".weight" out of this one name, and reads both; transformers 5 reads the full name only.
            actual = {key.replace("_vector.weight", "_vector"): tensor.shape for key, tensor in saved.items()}
            assert actual == expected
            layers = [layer for layer in model.modules() if isinstance(layer, LoraLayer)]
            assert layers
            assert all(layer.scaling["default"] == 1 for layer in layers)


@pytest.mark.parametrize("name", ["none", "calibrated", "affine"])
def test_all_modules_have_one_rank_for_programs_that_know_one(name: str, llama: PreTrainedModel) -> None:
    adapter = adapter_of(llama, VARIANTS[name]())
    assert adapter.config["r"] == adapter.config["lora_alpha"]
    assert adapter.config["rank_pattern"] == adapter.config["alpha_pattern"] == {}
    assert {tensor.shape[0] for key, tensor in adapter.tensors.items() if "lora_A" in key} == {adapter.config["r"]}
    assert {tensor.shape[1] for key, tensor in adapter.tensors.items() if "lora_B.weight" in key} == {
        adapter.config["r"]
    }


@pytest.mark.parametrize("normalization", ["none", "calibrated"])
def test_without_padding_each_module_has_its_own_rank(
    normalization: str, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    edit = edit_of(normalization=normalization)
    result = sea_export.save(edit, tiny_checkpoint, output, format="adapter", adapter_padding=False)
    assert result.verification is not None
    config = PeftConfig.from_pretrained(output)
    assert isinstance(config, LoraConfig)
    assert config.rank_pattern == config.alpha_pattern == {"model.layers.1.mlp.down_proj": 5}
    ranks = {len(one) for key, one in load_file(output / "adapter_model.safetensors").items() if "lora_A" in key}
    assert ranks == {5, 6}
    assert sea_export.verify(output, tiny_checkpoint).passed
    with pytest.raises(InputError, match="--adapter-padding: it goes with --format adapter"):
        ExportOptions(adapter_padding=False)


def test_at_scale_s_it_is_the_edit_of_strength_s(tiny_checkpoint_of: Callable[[str], Path], tmp_path: Path) -> None:
    for number, (family, center) in enumerate(
        [("llama", "off"), ("llama", "linear"), ("llama", "affine"), ("gpt2", "affine")]
    ):
        save(edit_of(center=center), tiny_checkpoint_of(family), tmp_path / str(number))
        model = AutoModelForCausalLM.from_pretrained(tmp_path / str(number))
        for strength in (0.0, 0.3, -1.0, 2.0):
            for layer in model.modules():
                if isinstance(layer, LoraLayer):
                    layer.set_scale("default", strength)
            expected = run_time_logits(tiny_model(family), edit_of(center=center, strength=strength))
            assert relative_error(logits(model), expected) < 1e-5, (family, center, strength)
        assert "at scale s it equals the edit of strength s," in card(tmp_path / str(number))


def test_the_card_names_a_lora_scale_only_where_it_scales_the_strength(tiny_checkpoint: Path, tmp_path: Path) -> None:
    for name, expected in {"half": "equals the edit of strength 0.5 s,", "calibrated": None, "composed": None}.items():
        edit = edit_of(strength=0.5) if name == "half" else VARIANTS[name]()
        save(edit, tiny_checkpoint, tmp_path / name)
        assert ("Its LoRA scale can be set" in card(tmp_path / name)) == (expected is not None)
        assert expected is None or expected in card(tmp_path / name)


def card(output: Path) -> str:
    return (output / "README.md").read_text(encoding="utf-8")


def test_half_precision_bases_are_read_without_rounding(tmp_path: Path) -> None:
    """The adapter is in float32 whatever the base is stored in, so that nothing is rounded in between."""
    model = random_model(tiny_config("gpt2")).to(torch.bfloat16)
    model.save_pretrained(tmp_path / "base")
    for name in ("none", "calibrated"):
        edit = VARIANTS[name]()
        save(edit, tmp_path / "base", tmp_path / name)
        adapted = AutoModelForCausalLM.from_pretrained(tmp_path / name, dtype=torch.float32)
        assert relative_error(logits(adapted), run_time_logits(model.float(), edit)) < 1e-5
        stored = load_file(tmp_path / name / "adapter_model.safetensors")
        assert {tensor.dtype for tensor in stored.values()} == {torch.float32}


# Rows that DoRA cannot divide by


def test_rows_of_zeros_stay_zeros(tmp_path: Path) -> None:
    """One row is zero and stays so, one is zero and does not, one is made zero by the edit."""
    model = random_model(tiny_config("llama"))
    weight = model.get_parameter("model.layers.1.mlp.down_proj.weight")
    axes = torch.eye(SIZE)
    with torch.no_grad():
        weight[[0, 1]] = 0
    (edit,) = edit_of((Target(1, "mlp"),), normalization="average").layers.values()
    mixed = (axes[:, 1:2] + axes[:, 2:3]) / 2**0.5  # feature 1 takes a part of feature 2
    layer = replace(edit[0], positive=mixed, negative=axes[:, 3:4])
    model.save_pretrained(tmp_path / "base")
    made = SpectralEdit({Target(1, "mlp"): (layer,)})
    save(made, tmp_path / "base", tmp_path / "out")
    (projection,) = find_output_projections(model, [Target(1, "mlp")])
    with torch.no_grad():
        folded = fold_parameters(projection, [layer], dict(model.named_parameters()))[projection.weights[0].name]
    norms = folded.norm(dim=1)
    assert norms[[0, 3]].eq(0).all()
    assert norms[1] > 0.1
    adapted = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    expected = run_time_logits(model, made)
    assert relative_error(logits(adapted), expected) < 1e-5
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    assert relative_error(logits(PeftModel.from_pretrained(base, tmp_path / "out").merge_and_unload()), expected) < 1e-5


def test_a_scaled_edit_without_directions_is_held(
    tiny_checkpoint: Path, llama: PreTrainedModel, tmp_path: Path
) -> None:
    edit = edit_of(positive_rank=0, negative_rank=0, normalization="average")
    save(edit, tiny_checkpoint, tmp_path / "out")
    adapted = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert relative_error(logits(adapted), run_time_logits(llama, edit)) < 1e-5


# A capped rank


@pytest.mark.parametrize("variant", ["none", "calibrated", "linear", "keeping only"])
@pytest.mark.parametrize("rank", [1, 4])
def test_a_capped_adapter_is_the_nearest_of_its_rank_and_tells_its_error(
    rank: int, variant: str, llama: PreTrainedModel
) -> None:
    edit = edit_of(projections="positive") if variant == "keeping only" else VARIANTS[variant]()
    adapter = adapter_of(llama, edit, rank)
    assert adapter.config["r"] == rank
    assert not adapter.config["use_dora"]
    adapted = adapted_weights(llama, adapter)
    projections = {
        projection.weights[0].name: projection for projection in find_output_projections(llama, edit.targets)
    }
    for module in adapter.modules:
        name = f"{module.module}.weight"
        weight = llama.get_parameter(name).detach().double()
        folded = fold_parameters(projections[name], edit.layers[projections[name].target], {name: weight})[name]
        values = torch.linalg.svdvals(folded - weight)
        error = (adapted[module.module] - folded).norm()
        assert float(error) == pytest.approx(float(values[rank:].norm()), rel=1e-5)
        assert module.relative_error == pytest.approx(float(error / values.norm()), rel=1e-5)
        assert module.rank == rank
        assert module.exact_rank == int((values > 1e-6 * values[0]).sum())


def test_a_cap_above_the_rank_changes_nothing(llama: PreTrainedModel) -> None:
    exact, capped = adapter_of(llama, edit_of()), adapter_of(llama, edit_of(), 50)
    assert capped.exact
    assert capped.config == exact.config
    assert all(torch.equal(capped.tensors[name], tensor) for name, tensor in exact.tensors.items())


def test_ranks_end_at_the_size_of_the_weight(tmp_path: Path) -> None:
    """With fewer inputs than the edit has directions, the change has the rank of the inputs."""
    config = tiny_config("llama")
    config.intermediate_size = 4
    model = random_model(config)
    adapter = adapter_of(model, edit_of())
    assert [module.exact_rank for module in adapter.modules] == [4, 4]
    assert adapter.exact


# Refusals


def test_edits_that_no_adapter_can_hold_are_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    fitter = SpectrumFitter("off", FeatureFunction("tanh"))
    tanh = build_layer_edit(fitter.update(random_activations(60, SIZE)).finish(), EditOptions())
    cases: list[tuple[LayerEdit, list[object]]] = [
        (tanh, ['feature_function="identity"']),
        (layer_edit(options=EditOptions(normalization="token")), ['normalization="calibrated"']),
        (layer_edit(options=EditOptions(normalization="sequence")), ['normalization="calibrated"']),
        (layer_edit(options=EditOptions(projections="positive")), ['format="merged"', "adapter_rank="]),
        (layer_edit(random_activations(60, 32)), [32]),
    ]
    for layer, facts in cases:
        with pytest.raises(InputError, match=naming(*facts)):
            save(SpectralEdit({Target(1, "mlp"): (layer,)}), tiny_checkpoint, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_an_edit_that_changes_nothing_is_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(SeaExportError, match="weight"):
        save(edit_of(strength=0.0), tiny_checkpoint, tmp_path / "out")


def test_a_gguf_base_is_refused(tiny_checkpoint: Path) -> None:
    base = Base("tiny.gguf", None, Checkpoint.open(tiny_checkpoint), None)
    with pytest.raises(InputError, match=naming("tiny.gguf", ".gguf")):
        planned(edit_of(), base)


def test_a_rank_cap_goes_with_adapters_only() -> None:
    with pytest.raises(InputError, match=naming("--adapter-rank", "--format adapter")):
        ExportOptions(format="merged", adapter_rank=16)
    with pytest.raises(InputError, match=naming("--adapter-rank", 0)):
        ExportOptions(format="adapter", adapter_rank=0)


# What is written


def planned(edit: SpectralEdit, base: Base, rank: int | None = None) -> AdapterPlan:
    stored = find_stored_projections(edit.targets, base, needs_bias=edit.needs_bias)
    return plan_adapter(edit, base, stored, rank=rank, load=lambda: pytest.fail("the base need not be loaded"))


def test_same_inputs_give_the_same_bytes(tiny_checkpoint: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        save(edit_of(normalization="calibrated"), tiny_checkpoint, tmp_path / name)
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*") if path.is_file())
    assert [str(file) for file in files] == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "sea_edit/sea_edit.json",
        "sea_edit/sea_edit.safetensors",
        "sea_export.json",
    ]
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes(), file


def test_a_local_base_is_named_by_its_path_in_the_adapter_and_nowhere_else(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    save(edit_of(), tiny_checkpoint, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["base_model_name_or_path"] == str(tiny_checkpoint.resolve())
    for file in ("sea_export.json", "README.md", "sea_edit/sea_edit.json"):
        assert str(tiny_checkpoint.parent) not in (tmp_path / "out" / file).read_text(encoding="utf-8"), file


def test_a_base_of_the_hub_is_named_by_its_id_and_revision(tiny_checkpoint: Path) -> None:
    plan = planned(edit_of(), Base("org/tiny", "0123abc", Checkpoint.open(tiny_checkpoint), "org/tiny"))
    assert plan.adapter.config["base_model_name_or_path"] == "org/tiny"
    assert plan.adapter.config["revision"] == "0123abc"
    assert not any("path on this machine" in line for line in plan.remarks())


def test_the_rank_report_tells_ranks_sizes_and_who_can_load_it(tiny_checkpoint: Path) -> None:
    with open_base(str(tiny_checkpoint)) as base:
        plain, scaled, affine, capped = (
            " ".join(planned(edit, base, rank).remarks())
            for edit, rank in (
                (edit_of(), None),
                (edit_of(normalization="calibrated"), None),
                (edit_of(center="affine"), None),
                (edit_of(normalization="calibrated"), 2),
            )
        )
        large = " ".join(planned(edit_of(positive_rank=12, negative_rank=8), base).remarks())
    assert "LoRA, 0.00307 MB, 2 modules; exact ranks 5, 6." in plain
    assert "Rank 6: programs that cap the rank (vLLM at 16 unless told otherwise) take it." in plain
    assert "DoRA, which vLLM and llama.cpp do not have" in scaled
    assert "has biases, which vLLM and llama.cpp do not read" in affine
    assert "PEFT cannot merge it" in affine
    assert "exact ranks 24, 24." in capped
    assert "cut to rank 2," in capped
    assert "not the edit" in capped
    assert "--max-lora-rank 32" in large
    assert "larger than the weights that it edits (0.00768 MB): --format merged is the better choice" in large
    assert "better choice" not in plain


def test_the_manifest_tells_what_the_adapter_is(tiny_checkpoint: Path, tmp_path: Path) -> None:
    save(edit_of(), tiny_checkpoint, tmp_path / "out", adapter_rank=2)
    manifest = json.loads((tmp_path / "out" / "sea_export.json").read_text(encoding="utf-8"))
    assert manifest["format"] == "adapter"
    assert manifest["edited_tensors"] == [f"model.layers.{layer}.mlp.down_proj.weight" for layer in (1, 3)]
    assert manifest["adapter"]["rank_cap"] == 2
    assert not manifest["adapter"]["exact"]
    assert [module["exact_rank"] for module in manifest["adapter"]["modules"]] == [5, 6]
    text = card(tmp_path / "out")
    assert "library_name: peft" in text
    assert "best approximation of rank 2 to the edit, and not the edit" in text


def test_an_adapter_needs_no_room_for_a_checkpoint(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=50_000))
    save(edit_of(), tiny_checkpoint, tmp_path / "out")
    with pytest.raises(InputError, match=naming(tmp_path / "merged", "0.00 GB free")):
        sea_export.save(edit_of(), tiny_checkpoint, tmp_path / "merged", verify=False)


# Verification


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "variant", "rank"), [("gpt2", "calibrated", None), ("llama", "linear, calibrated", 3)]
)
def test_a_saved_adapter_is_verified(
    family: str, variant: str, rank: int | None, tiny_checkpoint_of: Callable[[str], Path], tmp_path: Path
) -> None:
    result = save(VARIANTS[variant](), tiny_checkpoint_of(family), tmp_path / "out", verify=True, adapter_rank=rank)
    figures = result.verification
    assert figures is not None
    assert figures.passed
    assert figures.exact == (rank is None)
    assert figures.rounding_error.relative_logit_difference < 1e-5
    assert figures.weight_error is not None
    if rank is None:
        assert figures.fold_error.relative_logit_difference < 1e-5
        assert figures.weight_error < 1e-4
    else:
        assert figures.fold_error.relative_logit_difference > 1e-2, "it is not the edit, and the figures say so"
        assert figures.weight_error > 0.1


@pytest.mark.slow
def test_verify_knows_what_was_saved_and_sees_what_was_changed(tiny_checkpoint: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    save(edit_of(), tiny_checkpoint, output)
    assert sea_export.verify(output).passed
    damage(output, "lora_B.weight")
    assert_names(" ".join(sea_export.verify(output).problems), "adapter_model.safetensors")
    forged(output)
    assert_names(" ".join(sea_export.verify(output).problems), "weights", "model.layers.1.mlp.down_proj")


def damage(output: Path, name: str) -> None:
    tensors = load_file(output / "adapter_model.safetensors")
    tensors[f"base_model.model.model.layers.1.mlp.down_proj.{name}"] *= 1.01
    save_file(tensors, output / "adapter_model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("variant", "name"),
    [
        ("none", "lora_A.weight"),
        ("calibrated", "lora_B.weight"),
        ("calibrated", "lora_magnitude_vector.weight"),
        ("affine", "lora_B.bias"),
    ],
)
def test_every_damaged_tensor_is_seen(variant: str, name: str, tiny_checkpoint: Path, tmp_path: Path) -> None:
    edit = VARIANTS[variant]()
    save(edit, tiny_checkpoint, tmp_path / "out")
    with open_base(str(tiny_checkpoint)) as base:
        plan = planned(edit, base)
        check = check_adapter_weights(tmp_path / "out", edit, plan)
        assert not check.problems
        assert check.weight_error < 1e-5
        damage(tmp_path / "out", name)
        (problem,) = check_adapter_weights(tmp_path / "out", edit, plan).problems
    assert "model.layers.1.mlp.down_proj" in problem


def test_another_config_and_other_tensors_are_seen(tiny_checkpoint: Path, tmp_path: Path) -> None:
    edit = edit_of()
    with open_base(str(tiny_checkpoint)) as base:
        plan = planned(edit, base)
        save(edit, tiny_checkpoint, tmp_path / "config")
        file = tmp_path / "config" / "adapter_config.json"
        config = json.loads(file.read_text(encoding="utf-8"))
        file.write_text(json.dumps({**config, "lora_alpha": 7}), encoding="utf-8")
        with pytest.raises(InputError, match=naming("adapter_config.json")):
            check_adapter_weights(tmp_path / "config", edit, plan)
        save(edit, tiny_checkpoint, tmp_path / "tensors")
        file = tmp_path / "tensors" / "adapter_model.safetensors"
        save_file(dict(list(load_file(file).items())[1:]), file)
        with pytest.raises(InputError, match=naming("adapter_model.safetensors")):
            check_adapter_weights(tmp_path / "tensors", edit, plan)


def test_an_adapter_is_taken_off_again(tiny_checkpoint_of: Callable[[str], Path], tmp_path: Path) -> None:
    """Biases that it replaced included."""
    edit = edit_of(normalization="calibrated")
    save(edit, tiny_checkpoint_of("gpt2"), tmp_path / "out")
    model = random_model(tiny_config("gpt2"))
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    with torch.inference_mode(), with_adapter(model, tmp_path / "out"):
        assert relative_error(logits(model), run_time_logits(tiny_model("gpt2"), edit)) < 1e-5
    after = dict(model.named_parameters())
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert type(model.transformer.h[1].mlp.c_proj).__name__ == "Conv1D"


# Quantized bases


class QuantizedLinear(torch.nn.Module):
    """A linear map that stores 8-bit integers, as quantization libraries have them: no float weight to be read."""

    def __init__(self, linear: torch.nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.scales = linear.weight.detach().abs().amax(dim=1, keepdim=True) / 127
        self.packed = (linear.weight.detach() / self.scales).round().to(torch.int8)
        self.bias = linear.bias

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.linear(rows, self.packed * self.scales, self.bias)


@pytest.mark.parametrize("family", ["llama", "llama-bias"])
def test_an_adapter_is_made_from_what_quantized_weights_compute(
    family: str, tiny_checkpoint_of: Callable[[str], Path], tmp_path: Path
) -> None:
    model = random_model(tiny_config(family))
    for layer in model.model.layers:
        layer.mlp.down_proj = QuantizedLinear(layer.mlp.down_proj)
    shutil.copytree(tiny_checkpoint_of(family), tmp_path / "base")
    file = tmp_path / "base" / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({**config, "quantization_config": {"quant_method": "some"}}), encoding="utf-8")
    edit = edit_of(normalization="calibrated")
    with open_base(str(tmp_path / "base")) as base:
        with pytest.raises(InputError, match=r"some.*--format adapter"):
            check_unquantized(base)
        stored = find_stored_projections(edit.targets, base, needs_bias=False)
        plan = plan_adapter(edit, base, stored, rank=None, load=lambda: model)
    expected = run_time_logits(model, edit)
    assert relative_error(logits(model), expected) > 1e-2
    linear = {}
    for projection in find_output_projections(model, edit.targets):
        module = projection.weights[0].name.removesuffix(".weight")
        quantized = model.get_submodule(module)
        tensors = {name: plan.adapter.tensors[f"base_model.model.{module}.{name}"].double() for name in FACTORS}
        dequantized = (quantized.packed * quantized.scales).double()
        adapted = dequantized + tensors["lora_B.weight"] @ tensors["lora_A.weight"]
        adapted = (tensors["lora_magnitude_vector.weight"] / adapted.norm(dim=1))[:, None] * adapted
        linear[module] = torch.nn.Linear(quantized.in_features, quantized.out_features, bias=family == "llama-bias")
        linear[module].weight.data = adapted.float()
        if family == "llama-bias":
            assert quantized.bias is not None, "it is put back after it was read without"
            linear[module].bias.data = plan.adapter.tensors[f"base_model.model.{module}.base_layer.bias"]
    for module, replacement in linear.items():
        model.set_submodule(module, replacement)
    assert relative_error(logits(model), expected) < 1e-5


FACTORS = ("lora_A.weight", "lora_B.weight", "lora_magnitude_vector.weight")


@pytest.mark.slow
@pytest.mark.parametrize("bits", [4, 8])
def test_an_adapter_on_a_quantized_base_is_verified(
    bits: int, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    """Plain LoRA only: on the CPU, PEFT's DoRA cannot read the norms of what bitsandbytes has repacked."""
    config = tiny_config("llama")
    config.hidden_size, config.intermediate_size, config.head_dim = 64, 128, 16
    random_model(config).save_pretrained(tmp_path / "full")
    settings = BitsAndBytesConfig(
        load_in_4bit=bits == 4,
        load_in_8bit=bits == 8,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=torch.float32,
    )
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "full", quantization_config=settings, device_map="cpu")
    model.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    options = EditOptions(positive_rank=2, negative_rank=2)
    layer = layer_edit(random_activations(60, 64), options=options)
    edit = SpectralEdit({Target(1, "mlp"): (layer,), Target(2, "attention"): (layer,)})
    result = save(edit, tmp_path / "base", tmp_path / "out", verify=True)
    assert result.verification is not None
    assert result.verification.rounding_error.mean_divergence < result.verification.effect.mean_divergence / 20


# A real model


@pytest.mark.slow
@pytest.mark.real
def test_adapter_and_merged_export_of_a_real_model_agree(smollm2_directory: Path, tmp_path: Path) -> None:
    """The merged one is rounded to bfloat16, the adapter is not."""
    base = AutoModelForCausalLM.from_pretrained(smollm2_directory, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(smollm2_directory)
    demonstrations = sea_export.load_demonstrations("builtin:truthfulness", limit=24)
    edit = sea_export.fit(base, tokenizer, demonstrations, center="linear", normalization="calibrated")
    sea_export.save(edit, smollm2_directory, tmp_path / "merged", verify=False)
    save(edit, smollm2_directory, tmp_path / "adapter")
    tokens = tokenizer("Q: What happens if you swallow chewing gum?\nA:", return_tensors="pt").input_ids
    with torch.inference_mode():
        with edit.apply(base):
            expected = base(tokens).logits
        adapter, merged = (
            AutoModelForCausalLM.from_pretrained(tmp_path / name, dtype=torch.float32)(tokens).logits
            for name in ("adapter", "merged")
        )
        unedited = base(tokens).logits
    assert relative_error(adapter, expected) < 1e-4
    agreement, effect = Agreement.between(adapter, merged), Agreement.between(adapter, unedited)
    assert agreement.mean_divergence < 1e-3
    assert agreement.mean_divergence < effect.mean_divergence / 20
