"""An imported adapter does in a baked checkpoint what PEFT does with it, or is refused by name."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

import sea_export
from sea_export.edit.spectral_edit import SpectralEdit
from sea_export.errors import InputError, SeaExportError
from sea_export.export.manifest import read_manifest, write_manifest
from sea_export.files.digests import file_digest
from sea_export.importing.import_edit import import_edit
from sea_export.importing.import_options import ImportOptions
from sea_export.importing.source_forms import ADAPTER_FORM
from sea_export.model.targets import Target
from sea_export.verification.recorded_run import RecordedRun
from tests.helpers.adapter_files import change_config, change_tensors, random_adapter
from tests.helpers.family_configs import tiny_family_config
from tests.helpers.messages import naming
from tests.helpers.parameters import slow_but
from tests.helpers.tiny_edits import spectral_edit
from tests.helpers.tiny_models import CONFIGS, random_model, tiny_model

IDS = torch.tensor([[7, 60, 31, 20, 5, 40, 17, 44]])
MODULES = {
    "llama": ["q_proj", "v_proj", "o_proj", "gate_proj", "down_proj", "lm_head"],
    "llama-tied": ["q_proj", "v_proj", "gate_proj", "down_proj"],
    "llama-bias": ["q_proj", "k_proj", "o_proj", "up_proj", "down_proj"],
    "qwen2": ["q_proj", "v_proj", "down_proj"],
    "gpt2": ["c_attn", "c_proj"],
    "phi3": ["qkv_proj", "gate_up_proj", "down_proj"],
    "mixtral": ["q_proj", "o_proj"],
    "neox": ["query_key_value", "dense_4h_to_h"],
}
KINDS: dict[str, dict[str, Any]] = {
    "LoRA": {"r": 4, "lora_alpha": 6},
    "patterns": {"r": 4, "use_rslora": True, "rank_pattern": {"down_proj": 2}, "alpha_pattern": {"q_proj": 3}},
    "DoRA": {"r": 3, "use_dora": True},
}


@pytest.fixture(scope="module")
def base_of(
    tiny_checkpoint_of: Callable[[str], Path],
    tmp_path_factory: pytest.TempPathFactory,
    tokenizer: PreTrainedTokenizerFast,
) -> Callable[[str], Path]:
    """Gives the checkpoint of a family. Read only."""
    made: dict[str, Path] = {}

    def checkpoint(family: str) -> Path:
        if family in CONFIGS:
            return tiny_checkpoint_of(family)
        if family not in made:
            made[family] = tmp_path_factory.mktemp(family)
            model_of(family).save_pretrained(made[family])
            tokenizer.save_pretrained(made[family])
        return made[family]

    return checkpoint


def model_of(family: str) -> PreTrainedModel:
    return tiny_model(family) if family in CONFIGS else random_model(tiny_family_config(family))


@torch.inference_mode()
def logits(model: torch.nn.Module) -> Tensor:
    return model(IDS).logits


def loaded(directory: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(directory).eval()


def run_time(edit: SpectralEdit, model: PreTrainedModel) -> Tensor:
    with edit.apply(model):
        return logits(model)


def check_equal(found: Tensor, expected: Tensor, base: Tensor) -> None:
    difference, effect = (float((one - expected).abs().max() / expected.abs().max()) for one in (found, base))
    assert difference < 1e-5
    assert effect > 1e-2, "the base itself must fail the same comparison"


def lora(directory: Path, **entries: Any) -> PeftModel:
    """A LoRA of the tiny `llama`."""
    return random_adapter(
        tiny_model("llama"), directory, **{"r": 4, "target_modules": ["q_proj", "down_proj"], **entries}
    )


# What PEFT does


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", slow_but(("llama", "gpt2"), MODULES))
def test_it_does_what_peft_does(family: str, kind: str, base_of: Callable[[str], Path], tmp_path: Path) -> None:
    model, base = model_of(family), base_of(family)
    adapted = random_adapter(model, tmp_path / "adapter", target_modules=MODULES[family], **KINDS[kind])
    expected = logits(adapted)
    edit = import_edit(tmp_path / "adapter", base)
    check_equal(run_time(edit, model), expected, logits(model))
    result = sea_export.save(
        edit, base, tmp_path / "out", verify=(family, kind) in (("llama", "DoRA"), ("gpt2", "LoRA"))
    )
    assert len(result.report.edited) == len(edit.weight_changes) > 4
    output = loaded(tmp_path / "out")
    check_equal(logits(output), expected, logits(model))
    merged = dict(adapted.merge_and_unload().named_parameters())
    for name, parameter in output.named_parameters():
        torch.testing.assert_close(parameter, merged[name], rtol=1e-5, atol=1e-6)


def test_a_scaled_import_is_a_scaled_adapter(tiny_checkpoint: Path, tmp_path: Path) -> None:
    adapted = lora(tmp_path / "adapter")
    edit = import_edit(tmp_path / "adapter", tiny_checkpoint, coefficient=-0.5)
    whole = import_edit(tmp_path / "adapter", tiny_checkpoint)
    for module in adapted.modules():
        if hasattr(module, "scale_layer"):
            module.scale_layer(-0.5)
    model = tiny_model("llama")
    for same in (edit, whole * -0.5, whole.with_strength(-0.5), whole * 0.25 - whole * 0.75):
        check_equal(run_time(same, model), logits(adapted), logits(model))


def test_rounded_weights_are_verified(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    """A base of bfloat16 in shards, with one layer at a time in memory, and the head among the changed weights."""
    model = copy.deepcopy(tiny_model("llama")).to(torch.bfloat16)
    model.save_pretrained(tmp_path / "base", max_shard_size="30KB")
    tokenizer.save_pretrained(tmp_path / "base")
    exact, entries = model.float(), {"r": 4, "target_modules": ["q_proj", "lm_head"], "use_dora": True}
    adapted = random_adapter(exact, tmp_path / "adapter", **entries)
    edit = import_edit(tmp_path / "adapter", tmp_path / "base")
    result = sea_export.save(edit, tmp_path / "base", tmp_path / "out", layerwise=True)
    assert result.verification is not None
    assert result.verification.passed
    output = loaded(tmp_path / "out")
    assert output.dtype == torch.bfloat16
    expected = logits(adapted)
    assert (logits(output.float()) - expected).norm() < 0.05 * (logits(exact) - expected).norm()


# Algebra


def test_it_is_taken_off_again(tiny_checkpoint: Path, tmp_path: Path) -> None:
    lora(tmp_path / "adapter", target_modules=["q_proj", "v_proj", "down_proj"])
    edit = import_edit(tmp_path / "adapter", tiny_checkpoint)
    sea_export.save(edit, tiny_checkpoint, tmp_path / "out", verify=False)
    sea_export.save(-edit, tmp_path / "out", tmp_path / "back", verify=False, force=True)
    tensors = (load_file(one / "model.safetensors") for one in (tiny_checkpoint, tmp_path / "out", tmp_path / "back"))
    for before, there, back in zip(*(one.values() for one in tensors), strict=True):
        # Two roundings, each by half a unit in the last place of the larger number at most.
        unit = torch.finfo(before.dtype).eps * torch.maximum(before.abs(), there.abs())
        assert bool(((back - before).abs() <= unit).all())
    with pytest.raises(InputError, match=naming("out", "force")):
        sea_export.save(-edit, tmp_path / "out", tmp_path / "again", verify=False)


def test_a_change_less_itself_is_nothing(tiny_checkpoint: Path, tmp_path: Path) -> None:
    lora(tmp_path / "adapter", use_dora=True)
    edit = import_edit(tmp_path / "adapter", tiny_checkpoint)
    assert not any(one.left.any() or one.scale is not None for (one,) in (edit - edit).weight_changes.values())
    with pytest.raises(SeaExportError, match=naming("changes nothing")):
        sea_export.save(edit - edit, tiny_checkpoint, tmp_path / "out")


def test_two_adapters_are_applied_one_after_the_other(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """The second one, a DoRA of the base, scales the rows of what the first one has made."""
    lora(tmp_path / "a", seed=1, target_modules=["q_proj", "down_proj"])
    lora(tmp_path / "b", seed=2, target_modules=["q_proj", "v_proj"], use_dora=True)
    a, b = (import_edit(tmp_path / name, tiny_checkpoint) for name in ("a", "b"))
    both = sea_export.compose([a, b])
    model = copy.deepcopy(tiny_model("llama"))
    for name in sorted({*a.weight_changes, *b.weight_changes}):
        weight = model.get_submodule(name).weight
        for change in (*a.weight_changes.get(name, ()), *b.weight_changes.get(name, ())):
            scale = torch.ones(len(weight)) if change.scale is None else change.scale
            weight.data = scale[:, None] * weight.data + change.left @ change.right
    base = tiny_model("llama")
    check_equal(run_time(both, base), logits(model), logits(base))
    sea_export.save(both, tiny_checkpoint, tmp_path / "out", verify=False)
    check_equal(logits(loaded(tmp_path / "out")), logits(model), logits(base))
    assert [one.strength for one in (both * 0.5).weight_changes["model.layers.0.self_attn.q_proj"]] == [0.5, 0.5]


def test_it_stands_beside_edits_of_outputs(tiny_checkpoint: Path, tmp_path: Path) -> None:
    adapted = lora(tmp_path / "adapter", target_modules=["q_proj", "up_proj"])
    edit = import_edit(tmp_path / "adapter", tiny_checkpoint)
    outputs = spectral_edit([Target(1, "mlp"), Target(2, "attention")])
    both = sea_export.compose([edit, outputs])
    with outputs.apply(adapted.get_base_model()):
        expected = logits(adapted)
    model = tiny_model("llama")
    check_equal(run_time(both, model), expected, run_time(edit, model))
    for format in ("merged", "adapter"):
        output = tmp_path / f"out-{format}"
        sea_export.save(both, tiny_checkpoint, output, format=format, verify=format == "adapter")
        check_equal(logits(loaded(output)), expected, logits(model))
    card = (tmp_path / "out-merged" / "README.md").read_text()
    assert "q_proj of layers 0-3" in card
    assert "MLP blocks of layer 1" in card


def test_one_weight_has_one_kind_of_edit(tiny_checkpoint: Path, tmp_path: Path) -> None:
    lora(tmp_path / "adapter")
    edit = sea_export.compose([import_edit(tmp_path / "adapter", tiny_checkpoint), spectral_edit([Target(2, "mlp")])])
    for use in (
        lambda: run_time(edit, tiny_model("llama")),
        lambda: sea_export.save(edit, tiny_checkpoint, tmp_path / "merged"),
        lambda: sea_export.save(edit, tiny_checkpoint, tmp_path / "adapted", format="adapter"),
    ):
        with pytest.raises(InputError, match=naming("model.layers.2.mlp.down_proj", "2.mlp")):
            use()


def test_layers_are_kept_and_left_out(tiny_checkpoint: Path, tmp_path: Path) -> None:
    lora(tmp_path / "adapter", target_modules=["q_proj", "lm_head"])
    edit = import_edit(tmp_path / "adapter", tiny_checkpoint)
    assert edit.decoder_layers == (0, 1, 2, 3)
    names = [f"model.layers.{layer}.self_attn.q_proj" for layer in range(4)]
    assert list(edit.weight_changes) == [*names, "lm_head"]
    assert list(edit.only([1, 2]).weight_changes) == names[1:3]
    assert list(edit.without([1, 2]).weight_changes) == [names[0], names[3], "lm_head"]
    assert edit.only([1]).provenance["targets"] == [names[1]]
    with pytest.raises(InputError, match=naming("lm_head")):
        edit.only([9])


# Formats


@pytest.mark.parametrize("kind", KINDS)
def test_it_becomes_an_adapter_again(kind: str, tiny_checkpoint: Path, tmp_path: Path) -> None:
    adapted = lora(tmp_path / "adapter", **KINDS[kind])
    edit, model = import_edit(tmp_path / "adapter", tiny_checkpoint), tiny_model("llama")
    sea_export.save(edit * 0.5, tiny_checkpoint, tmp_path / "out", format="adapter", verify=kind == "DoRA")
    assert read_manifest(tmp_path / "out")["adapter"]["kind"] == ("DoRA" if kind == "DoRA" else "LoRA")
    found = logits(PeftModel.from_pretrained(copy.deepcopy(model), tmp_path / "out").eval())
    check_equal(found, run_time(edit * 0.5, model), logits(model))
    sea_export.save(edit, tiny_checkpoint, tmp_path / "whole", format="adapter", adapter_padding=False, verify=False)
    found = logits(PeftModel.from_pretrained(copy.deepcopy(model), tmp_path / "whole").eval())
    check_equal(found, logits(adapted), logits(model))


def test_an_adapter_of_a_quantized_base_is_adapted(quantized_checkpoint: Path, tmp_path: Path) -> None:
    plain = random_model(AutoModelForCausalLM.from_pretrained(quantized_checkpoint, device_map="cpu").config)
    random_adapter(plain, tmp_path / "adapter", r=4, target_modules=["q_proj", "down_proj"])
    edit = import_edit(tmp_path / "adapter", quantized_checkpoint)
    assert edit.weight_changes.summary[0].relative_change is None
    sea_export.save(edit, quantized_checkpoint, tmp_path / "out", format="adapter")
    with pytest.raises(InputError, match=naming("quantized", "adapter")):
        sea_export.save(edit, quantized_checkpoint, tmp_path / "merged")
    random_adapter(plain, tmp_path / "dora", r=4, target_modules=["q_proj"], use_dora=True)
    with pytest.raises(InputError, match=naming("quantized", "DoRA")):
        import_edit(tmp_path / "dora", quantized_checkpoint)


@pytest.mark.parametrize(("format", "facts"), [("custom-code", ("merged", "adapter")), ("gguf-adapter", ("adapter",))])
def test_other_formats_are_refused(format: str, facts: tuple[str, ...], tiny_checkpoint: Path, tmp_path: Path) -> None:
    lora(tmp_path / "adapter")
    edit = import_edit(tmp_path / "adapter", tiny_checkpoint)
    with pytest.raises(InputError, match=naming("format", format, "model.layers.0.mlp.down_proj", *facts)):
        sea_export.save(edit, tiny_checkpoint, tmp_path / "out", format=format)
    assert not (tmp_path / "out").exists()


def test_a_changed_number_is_found(tiny_checkpoint: Path, tmp_path: Path) -> None:
    lora(tmp_path / "adapter")
    edit = import_edit(tmp_path / "adapter", tiny_checkpoint)
    sea_export.save(edit, tiny_checkpoint, tmp_path / "out", verify=False)
    assert sea_export.verify(tmp_path / "out", tiny_checkpoint).passed
    other = edit.with_strength(1.0001)
    other.save(tmp_path / "out" / "sea_edit")
    manifest = read_manifest(tmp_path / "out")
    files = {name: file_digest(tmp_path / "out" / name) for name in manifest["files"]}
    write_manifest(tmp_path / "out", {**manifest, "files": files})
    found = sea_export.verify(tmp_path / "out", tiny_checkpoint)
    assert not found.passed
    assert "model.layers.0.mlp.down_proj.weight" in found.problems[0]


# Records


def test_the_source_is_told(tiny_checkpoint: Path, tmp_path: Path) -> None:
    lora(tmp_path / "tuned")
    edit = import_edit(tmp_path / "tuned", tiny_checkpoint, coefficient=2)
    sea_export.save(edit, tiny_checkpoint, tmp_path / "out", verify=False)
    card, manifest = (tmp_path / "out" / "README.md").read_text(), read_manifest(tmp_path / "out")
    imported = manifest["edit"]["imported"]
    assert imported["form"] == "PEFT LoRA"
    assert imported["coefficient"] == 2
    for fact in (
        "tuned",
        "PEFT LoRA",
        imported["sha256"][:12],
        imported["config_sha256"][:12],
        "an edit of its weights",
    ):
        assert fact in card
    with pytest.raises(InputError, match=naming("tuned", "coefficient 2")):
        RecordedRun.of(manifest)


def test_it_is_read_as_it_was_saved(tiny_checkpoint: Path, tmp_path: Path) -> None:
    lora(tmp_path / "adapter", use_dora=True)
    edit = import_edit(tmp_path / "adapter", tiny_checkpoint) * 0.5
    edit.save(tmp_path / "edit")
    again = sea_export.load_edit(tmp_path / "edit")
    assert again.to_dict() == edit.to_dict()
    for module, changes in edit.weight_changes.items():
        for one, other in zip(changes, again.weight_changes[module], strict=True):
            assert all(torch.equal(tensor, other.tensors()[name]) for name, tensor in one.tensors().items())
    assert "8 weights" in repr(again)
    assert "model.layers.0.mlp.down_proj" in again._repr_html_()


# Refusals


def nothing(tensors: dict[str, Tensor]) -> None:
    for tensor in tensors.values():
        tensor.zero_()


def first(tensors: dict[str, Tensor]) -> str:
    return min(tensors)


@pytest.mark.parametrize(
    ("change", "facts"),
    [
        (lambda tensors: tensors.pop(first(tensors)), ("adapter", "lora_A")),
        (lambda tensors: tensors[first(tensors)].fill_(torch.nan), ("model.layers.0.mlp.down_proj", "finite")),
        (lambda tensors: tensors.update(extra=torch.ones(2)), ("extra",)),
        (
            lambda tensors: tensors.update({"base_model.model.model.norm.weight": torch.ones(24)}),
            ("model.norm.weight", "merge_and_unload"),
        ),
        (lambda tensors: tensors.update({first(tensors): tensors[first(tensors)][:1].clone()}), ("PEFT",)),
        (lambda tensors: tensors.update({first(tensors): tensors[first(tensors)].int()}), ("I32",)),
        (nothing, ("nothing",)),
    ],
)
def test_wrong_tensors_are_refused(
    change: Callable[[dict[str, Tensor]], object], facts: tuple[str, ...], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    lora(tmp_path / "adapter")
    change_tensors(tmp_path / "adapter", change)
    with pytest.raises(InputError, match=naming(*facts)):
        import_edit(tmp_path / "adapter", tiny_checkpoint)


@pytest.mark.parametrize(
    ("entries", "facts"),
    [
        ({"wonder": 3}, ("wonder",)),
        ({"bias": "lora_only"}, ("bias",)),
        ({"lora_bias": True}, ("lora_bias",)),
        ({"modules_to_save": ["lm_head"]}, ("modules_to_save",)),
        ({"trainable_token_indices": [1, 2]}, ("trainable_token_indices",)),
        ({"target_parameters": ["x.weight"]}, ("target_parameters",)),
        ({"layer_replication": [[0, 2], [1, 3]]}, ("layer_replication",)),
        ({"use_qalora": True}, ("use_qalora",)),
        ({"alora_invocation_tokens": [1]}, ("alora_invocation_tokens",)),
        ({"init_lora_weights": "pissa"}, ("init_lora_weights", "pissa")),
        ({"peft_type": "IA3"}, ("LoRA",)),
        ({"r": 0}, ("r",)),
        ({"r": "4"}, ("r",)),
        ({"lora_alpha": 0}, ("lora_alpha",)),
        ({"use_dora": "yes"}, ("use_dora",)),
        ({"use_dora": True}, ("lora_magnitude_vector",)),
        ({"target_modules": ["k_proj"]}, ("adapter",)),
        ({"target_modules": ["q_proj"]}, ("adapter",)),
        ({"target_modules": ["q_proj", "down_proj", "v_proj"]}, ("v_proj", "lora_A")),
        ({"target_modules": ["nowhere"]}, ("PEFT",)),
        ({"rank_pattern": {"q_proj": 3}}, ("PEFT",)),
    ],
)
def test_wrong_configs_are_refused(
    entries: dict[str, object], facts: tuple[str, ...], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    lora(tmp_path / "adapter")
    change_config(tmp_path / "adapter", **entries)
    with pytest.raises(InputError, match=naming(*facts)):
        import_edit(tmp_path / "adapter", tiny_checkpoint)


def test_entries_that_say_nothing_are_read(tiny_checkpoint: Path, tmp_path: Path) -> None:
    lora(tmp_path / "adapter")
    change_config(tmp_path / "adapter", of_a_later_version=None, another_one=False, lora_dropout=0.3)
    assert len(import_edit(tmp_path / "adapter", tiny_checkpoint).weight_changes) == 8


def test_another_model_is_refused(base_of: Callable[[str], Path], tiny_checkpoint: Path, tmp_path: Path) -> None:
    """One of other sizes, one with other modules, and one that is edited after the import."""
    config = copy.deepcopy(tiny_model("llama").config)
    config.hidden_size, config.head_dim = 32, 8
    wide = random_model(config)
    random_adapter(wide, tmp_path / "wide", r=4, target_modules=["q_proj"])
    with pytest.raises(InputError, match=naming("PEFT")):
        import_edit(tmp_path / "wide", tiny_checkpoint)
    lora(tmp_path / "adapter")
    with pytest.raises(InputError, match=naming("PEFT")):
        import_edit(tmp_path / "adapter", base_of("gpt2"))
    edit = import_edit(tmp_path / "adapter", tiny_checkpoint)
    for other, fact in ((wide, "(32, 40)"), (tiny_model("gpt2"), "no module")):
        with pytest.raises(InputError, match=naming("model.layers.0.mlp.down_proj", fact)):
            run_time(edit, other)


def test_what_is_no_linear_map_of_its_own_is_refused(base_of: Callable[[str], Path], tmp_path: Path) -> None:
    random_adapter(tiny_model("llama"), tmp_path / "embedding", r=4, target_modules=["embed_tokens", "q_proj"])
    with pytest.raises(InputError, match=naming("model.embed_tokens", "Embedding")):
        import_edit(tmp_path / "embedding", base_of("llama"))
    random_adapter(tiny_model("llama-tied"), tmp_path / "head", r=4, target_modules=["lm_head", "q_proj"])
    with pytest.raises(InputError, match=naming("lm_head", "shares")):
        import_edit(tmp_path / "head", base_of("llama-tied"))


def test_a_head_of_its_own_beside_the_adapter_is_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """PEFT saves the head that an adapter changes. It has to be that of the model."""
    lora(tmp_path / "adapter", target_modules=["lm_head"])
    name = "base_model.model.lm_head.base_layer.weight"
    assert len(import_edit(tmp_path / "adapter", tiny_checkpoint).weight_changes) == 1
    change_tensors(tmp_path / "adapter", lambda tensors: tensors[name].mul_(1.01))
    with pytest.raises(InputError, match=naming("lm_head.weight", "merge_and_unload")):
        import_edit(tmp_path / "adapter", tiny_checkpoint)


@pytest.mark.parametrize(
    ("option", "value"),
    [("as_", "add"), ("layers", "0"), ("site", "mlp"), ("numbering", "inputs"), ("source_layer", 1)],
)
def test_options_of_vectors_say_nothing_of_an_adapter(option: str, value: str | int) -> None:
    name = f"--{option.strip('_').replace('_', '-')}"
    with pytest.raises(InputError, match=naming(name, "adapter")):
        ImportOptions(**{option: value}).meaning(ADAPTER_FORM, "tuned")


def test_pickled_weights_are_not_read(tiny_checkpoint: Path, tmp_path: Path) -> None:
    lora(tmp_path / "adapter")
    (tmp_path / "adapter" / "adapter_model.safetensors").rename(tmp_path / "adapter" / "adapter_model.bin")
    with pytest.raises(InputError, match=naming("adapter_model.safetensors", "PEFT")):
        import_edit(tmp_path / "adapter", tiny_checkpoint)
