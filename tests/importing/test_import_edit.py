"""Imported vectors do in a baked checkpoint what hooks on the base do, or are refused by name."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

import sea_export
from sea_export.errors import InputError
from sea_export.export.manifest import read_manifest
from sea_export.importing.import_edit import import_edit
from sea_export.model.architecture import hidden_size
from sea_export.model.targets import EMBEDDING, Target
from sea_export.saving import save
from sea_export.verification.recorded_run import RecordedRun
from tests.helpers.family_configs import tiny_family_config
from tests.helpers.messages import assert_names, naming
from tests.helpers.parameters import slow_but
from tests.helpers.tiny_models import CONFIGS, blocks_of, layers_of, random_model, tiny_model

IDS = torch.tensor([[7, 60, 31, 20, 5, 40, 17, 44]])
ABLATED = ("llama", "llama-tied", "llama-bias", "neox", "qwen3", "mistral", "phi3", "mixtral", "qwen2_moe")
ADDED = ("llama", "llama-bias", "gpt2", "neox")


@pytest.fixture(scope="module")
def checkpoint_of(
    tiny_checkpoint_of: Callable[[str], Path],
    tmp_path_factory: pytest.TempPathFactory,
    tokenizer: PreTrainedTokenizerFast,
) -> Callable[[str], Path]:
    """Gives the checkpoint of a family of `tiny_models`, or of any that transformers knows. Read only."""
    made: dict[str, Path] = {}

    def checkpoint(name: str) -> Path:
        if name in CONFIGS:
            return tiny_checkpoint_of(name)
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name)
            model_of(name).save_pretrained(made[name])
            tokenizer.save_pretrained(made[name])
        return made[name]

    return checkpoint


def model_of(name: str) -> PreTrainedModel:
    return tiny_model(name) if name in CONFIGS else random_model(tiny_family_config(name))


def vectors(model: PreTrainedModel, layers: list[int]) -> dict[int, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {layer: torch.randn(hidden_size(model.config), generator=generator) for layer in layers}


@contextmanager
def hooked(modules: dict[nn.Module, Callable[[Tensor], Tensor]]) -> Iterator[None]:
    """Plain hooks that change the outputs of modules, written without the package."""

    def hook(change: Callable[[Tensor], Tensor]) -> Callable[..., Any]:
        def changed(module: nn.Module, inputs: object, output: Any) -> Any:
            return (change(output[0]), *output[1:]) if isinstance(output, tuple) else change(output)

        return changed

    with ExitStack() as stack:
        for module, change in modules.items():
            stack.callback(module.register_forward_hook(hook(change)).remove)
        yield


@torch.inference_mode()
def logits(model: PreTrainedModel) -> Tensor:
    return model(IDS).logits


def check_equal(found: Tensor, expected: Tensor, base: Tensor) -> None:
    difference, effect = (float((one - expected).abs().max() / expected.abs().max()) for one in (found, base))
    assert difference < 1e-5
    assert effect > 1e-2, "the base itself must fail the same comparison"


def loaded(directory: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()


# Added vectors


@pytest.mark.parametrize("family", slow_but(("llama", "gpt2"), ADDED))
def test_vectors_are_added_to_what_layers_give(
    family: str, checkpoint_of: Callable[[str], Path], tmp_path: Path
) -> None:
    model, base = model_of(family), checkpoint_of(family)
    added = vectors(model, [0, 2, 3])
    save_file({f"layer.{layer}": vector for layer, vector in added.items()}, tmp_path / "v.safetensors")
    edit = import_edit(tmp_path / "v.safetensors", base, as_="add", coefficient=-0.5)
    sea_export.save(edit, base, tmp_path / "out", verify=family == "llama")
    change = {layers_of(model)[layer]: (lambda h, v=vector: h - 0.5 * v) for layer, vector in added.items()}
    with hooked(change):
        expected = logits(model)
    check_equal(logits(loaded(tmp_path / "out")), expected, logits(model))
    with edit.apply(model):
        check_equal(logits(model), expected, logits(model_of(family).eval()) * 0)


def test_inputs_of_layers_are_outputs_of_those_before(checkpoint_of: Callable[[str], Path], tmp_path: Path) -> None:
    base, model = checkpoint_of("llama"), model_of("llama")
    rows = torch.stack(list(vectors(model, list(range(5))).values()))
    save_file({"rows": rows}, tmp_path / "rows.safetensors")
    with pytest.raises(InputError, match=naming("--layers", "embedding")):
        import_edit(tmp_path / "rows.safetensors", base, as_="add")
    edit = import_edit(tmp_path / "rows.safetensors", base, as_="add", layers="0,2-3")
    assert edit.targets == (Target(0, "mlp"), Target(2, "mlp"), Target(3, "mlp"))
    for layer in (0, 2, 3):
        torch.testing.assert_close(edit.layers[layer].constant(), rows[layer + 1].double())
    assert edit.provenance["imported"]["numbering"] == "inputs"


@pytest.mark.parametrize("site", ["mlp", "attention"])
def test_vectors_of_blocks_are_added_to_what_they_give(
    site: str, checkpoint_of: Callable[[str], Path], tmp_path: Path
) -> None:
    model, base = model_of("llama-bias"), checkpoint_of("llama-bias")
    added = vectors(model, [1])
    torch.save(added, tmp_path / "v.pt")
    edit = import_edit(tmp_path / "v.pt", base, as_="add", site=site, coefficient=2)
    sea_export.save(edit, base, tmp_path / "out", verify=False)
    with hooked({blocks_of(model, site)[1]: lambda h: h + 2 * added[1]}):
        expected = logits(model)
    check_equal(logits(loaded(tmp_path / "out")), expected, logits(model))


def test_a_norm_after_the_block_is_no_place_for_the_residual_stream(
    checkpoint_of: Callable[[str], Path], tmp_path: Path
) -> None:
    base = checkpoint_of("gemma2")
    save_file({"1": vectors(model_of("gemma2"), [1])[1]}, tmp_path / "v.safetensors")
    with pytest.raises(InputError, match=naming("model.layers.1.mlp", "--site", "norm")):
        import_edit(tmp_path / "v.safetensors", base, as_="add")
    edit = import_edit(tmp_path / "v.safetensors", base, as_="add", site="mlp")
    assert edit.targets == (Target(1, "mlp"),)


def test_experts_have_no_bias_for_an_added_vector(checkpoint_of: Callable[[str], Path], tmp_path: Path) -> None:
    base = checkpoint_of("mixtral")
    save_file({"1": vectors(model_of("mixtral"), [1])[1]}, tmp_path / "v.safetensors")
    edit = import_edit(tmp_path / "v.safetensors", base, as_="add")
    with pytest.raises(InputError, match=naming("bias")):
        sea_export.save(edit, base, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# Ablation


@pytest.mark.parametrize("family", slow_but(("llama", "llama-tied", "llama-bias", "neox", "mixtral"), ABLATED))
def test_a_direction_is_removed_from_everything_that_is_written(
    family: str, checkpoint_of: Callable[[str], Path], tmp_path: Path
) -> None:
    model, base = model_of(family), checkpoint_of(family)
    (direction,) = vectors(model, [0]).values()
    unit = direction / direction.norm()
    (tmp_path / "refusal.json").write_text(json.dumps(direction.tolist()))
    edit = import_edit(tmp_path / "refusal.json", base, as_="ablate")
    assert EMBEDDING in edit.targets
    sea_export.save(edit, base, tmp_path / "out", verify=family in ("llama", "llama-tied"))

    def removed(h: Tensor) -> Tensor:
        return h - (h @ unit)[..., None] * unit

    writers = [model.get_input_embeddings(), *_blocks(model, "attention"), *_blocks(model, "mlp")]
    assert len(writers) == 1 + 2 * len(layers_of(model))
    with torch.inference_mode(), hooked(dict.fromkeys(writers, removed)):
        expected = logits(model)
        # Of a copy: transformers leaves hooks on a model that was asked for its hidden states.
        states = copy.deepcopy(model)(IDS, output_hidden_states=True).hidden_states[:-1]
    assert max(float((state @ unit).norm() / state.norm()) for state in states) < 1e-5
    exported = loaded(tmp_path / "out")
    check_equal(logits(exported), expected, logits(model))
    head = model.get_output_embeddings().weight
    assert torch.equal(exported.get_output_embeddings().weight, head), "the head reads, and is the base's"


def _blocks(model: PreTrainedModel, component: str) -> list[nn.Module]:
    found = blocks_of(model, component)
    return found or [layer.block_sparse_moe for layer in layers_of(model)]


def test_a_tied_head_becomes_its_own(checkpoint_of: Callable[[str], Path], tmp_path: Path) -> None:
    base = checkpoint_of("llama-tied")
    (tmp_path / "v.json").write_text(json.dumps([1.0] * 24))
    edit = import_edit(tmp_path / "v.json", base, as_="ablate", coefficient=0.5)
    sea_export.save(edit, base, tmp_path / "out", verify=False)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"] is False
    assert read_manifest(tmp_path / "out")["added_tensors"] == ["lm_head.weight"]
    assert "its embedding, whose weight it shared" in " ".join((tmp_path / "out" / "README.md").read_text().split())
    for format in ("adapter", "custom-code"):
        with pytest.raises(InputError, match=naming(format, "embedding")):
            sea_export.save(edit, base, tmp_path / format, format=format)


@pytest.mark.parametrize(("family", "place"), [("gpt2", "before the first layer"), ("gemma2", "model.layers.0")])
def test_what_else_writes_into_the_stream_is_found(
    family: str, place: str, checkpoint_of: Callable[[str], Path], tmp_path: Path
) -> None:
    base = checkpoint_of(family)
    (tmp_path / "v.json").write_text(json.dumps([1.0] * 23 + [2.0]))
    with pytest.raises(InputError, match=naming("--as", place, "--site")):
        import_edit(tmp_path / "v.json", base, as_="ablate")
    edit = import_edit(tmp_path / "v.json", base, as_="ablate", site="mlp")
    assert edit.targets == tuple(Target(layer, "mlp") for layer in range(4))


def test_one_direction_of_several_is_chosen(checkpoint_of: Callable[[str], Path], tmp_path: Path) -> None:
    base, found = checkpoint_of("llama"), vectors(model_of("llama"), [1, 2])
    torch.save(found, tmp_path / "v.pt")
    with pytest.raises(InputError, match=naming("--source-layer", "project")):
        import_edit(tmp_path / "v.pt", base, as_="ablate")
    edit = import_edit(tmp_path / "v.pt", base, as_="ablate", source_layer=2)
    matrix = edit.layers[Target(0, "mlp")].matrix()
    assert (matrix @ found[2].double()).norm() < 1e-5 < 1 < (matrix @ found[1].double()).norm()


@pytest.mark.parametrize("meaning", ["project", "keep"])
def test_directions_of_blocks(meaning: str, checkpoint_of: Callable[[str], Path], tmp_path: Path) -> None:
    model, base = model_of("llama"), checkpoint_of("llama")
    directions = torch.randn(3, 24, generator=torch.Generator().manual_seed(2))
    basis = torch.linalg.qr(directions.T).Q
    (tmp_path / "v.json").write_text(json.dumps(directions.tolist()))
    edit = import_edit(tmp_path / "v.json", base, as_=meaning, site="attention", layers="1-2")
    sea_export.save(edit, base, tmp_path / "out", verify=False)
    change = {"project": lambda h: h - h @ basis @ basis.T, "keep": lambda h: h @ basis @ basis.T}[meaning]
    with hooked(dict.fromkeys(blocks_of(model, "attention")[1:3], change)):
        expected = logits(model)
    check_equal(logits(loaded(tmp_path / "out")), expected, logits(model))


@pytest.mark.parametrize(
    ("options", "facts"),
    [
        ({}, ("--as", "project")),
        ({"as_": "add"}, ("--layers",)),
        ({"as_": "add", "layers": "9"}, ("--layers", 9)),
        ({"as_": "project"}, ("--site",)),
        ({"as_": "keep", "site": "residual", "layers": "1"}, ("--site",)),
        ({"as_": "ablate", "layers": "1"}, ("--layers",)),
        ({"as_": "add", "coefficient": 0}, ("--coefficient",)),
        ({"as_": "subtract"}, ("--as",)),
        ({"as_": "add", "layers": "1", "numbering": "outputs"}, ("--numbering",)),
    ],
)
def test_what_the_file_does_not_say_is_asked(
    options: dict[str, object], facts: tuple[object, ...], checkpoint_of: Callable[[str], Path], tmp_path: Path
) -> None:
    (tmp_path / "v.json").write_text(json.dumps([1.0] * 24))
    with pytest.raises(InputError, match=naming(*facts)):
        import_edit(tmp_path / "v.json", checkpoint_of("llama"), **options)


# What is told


def test_outputs_tell_where_the_edit_is_from(checkpoint_of: Callable[[str], Path], tmp_path: Path) -> None:
    base = checkpoint_of("llama")
    torch.save(vectors(model_of("llama"), [1, 2]), tmp_path / "kind.pt")
    edit = import_edit(tmp_path / "kind.pt", base, as_="add", coefficient=1.5)
    sea_export.save(edit, base, tmp_path / "out", verify=False)
    manifest = read_manifest(tmp_path / "out")
    told = manifest["edit"]["imported"]
    assert told["source"] == "kind.pt"
    assert (told["meaning"], told["coefficient"], told["site"], told["layers"]) == ("add", 1.5, "residual", [1, 2])
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert_names(card, "kind.pt", told["sha256"][:16], "coefficient 1.5")
    assert "demonstrations" not in card
    assert "a license of its own" in " ".join(card.split())
    with pytest.raises(InputError, match=naming("kind.pt", "add", "sea-export save")):
        RecordedRun.of(manifest)
    half = (edit * 0.5).provenance["imported"]
    assert half["coefficient"] == 0.75


def test_only_blocks_that_get_a_constant_get_biases(checkpoint_of: Callable[[str], Path], tmp_path: Path) -> None:
    model, base = model_of("llama"), checkpoint_of("llama")
    (direction, vector) = vectors(model, [0, 2]).values()
    unit = direction / direction.norm()
    (tmp_path / "v.json").write_text(json.dumps(direction.tolist()))
    torch.save({2: vector}, tmp_path / "v.pt")
    ablated = import_edit(tmp_path / "v.json", base, as_="ablate")
    both = sea_export.compose([import_edit(tmp_path / "v.pt", base, as_="add"), ablated])
    sea_export.save(both, base, tmp_path / "out", verify=False)
    assert {name.split(".")[3] for name in read_manifest(tmp_path / "out")["added_tensors"]} == {"mlp"}

    def removed(h: Tensor) -> Tensor:
        return h - (h @ unit)[..., None] * unit

    writers = [model.get_input_embeddings(), *blocks_of(model, "attention"), *blocks_of(model, "mlp")]
    change = dict.fromkeys(writers, removed) | {blocks_of(model, "mlp")[2]: lambda h: removed(h + vector)}
    with hooked(change):
        expected = logits(model)
    check_equal(logits(loaded(tmp_path / "out")), expected, logits(model))


@pytest.mark.parametrize("family", slow_but(("llama-tied",), ("llama", "llama-tied")))
def test_an_edited_embedding_is_verified_layer_by_layer(
    family: str, checkpoint_of: Callable[[str], Path], tmp_path: Path
) -> None:
    base = checkpoint_of(family)
    (tmp_path / "v.json").write_text(json.dumps([1.0] * 23 + [2.0]))
    edit = import_edit(tmp_path / "v.json", base, as_="ablate")
    result = sea_export.save(edit, base, tmp_path / "out", layerwise=True)
    assert result.verification is not None
    assert result.verification.passed
    assert result.verification.fold_error.max_logit_difference < 1e-4
    assert result.verification.effect.max_logit_difference > 0.1


def test_what_has_no_place_for_a_constant_tells_what_helps(
    checkpoint_of: Callable[[str], Path], tmp_path: Path
) -> None:
    """No option of a fit helps an edit that was imported; the same edit as one of a fit is told of it."""
    base = checkpoint_of("mistral")
    source = tmp_path / "vectors.safetensors"
    save_file({f"layer.{layer}": vector for layer, vector in vectors(model_of("mistral"), [1, 2]).items()}, source)
    edit = import_edit(source, base, as_="add", site="mlp")
    with pytest.raises(InputError, match=naming("model.layers.1.mlp.down_proj.bias", "--format custom-code")) as error:
        save(edit, base, tmp_path / "out")
    assert "center" not in str(error.value)
    saved = sea_export.save(edit, base, tmp_path / "out", format="custom-code")
    assert saved.verification is not None
    assert saved.verification.passed
    with pytest.raises(InputError, match=naming("model.layers.1.mlp.down_proj.bias", "--center linear")):
        save(replace(edit, provenance={}), base, tmp_path / "fitted")
