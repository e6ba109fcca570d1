"""Parameters are found in checkpoints of every layout that transformers loads, and nothing else is folded into."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from sea_export.errors import InputError
from sea_export.export.stored_layout import StoredLayout, stored_layout
from sea_export.model.architecture import find_output_projections
from sea_export.model.checkpoint import Checkpoint
from sea_export.model.load_model import skeleton
from sea_export.model.targets import Target
from tests.helpers.family_configs import tiny_family_config
from tests.helpers.messages import naming
from tests.helpers.tiny_models import random_model, tiny_model

DOWN = "model.layers.1.mlp.experts.down_proj"


@functools.cache
def model_of(model_type: str) -> PreTrainedModel:
    return random_model(tiny_family_config(model_type))


def layout_of(model: PreTrainedModel, directory: Path) -> StoredLayout:
    return stored_layout(skeleton(model.config), Checkpoint.open(directory))


def assert_all_found(model: PreTrainedModel, layout: StoredLayout) -> dict[str, tuple[str, ...]]:
    """The parts of each weight of layer 1's MLP, which read as what the model has."""
    parts = {}
    for weight in find_output_projections(model, [Target(1, "mlp")])[0].weights:
        stored = layout.find(weight.name, weight.output_dim)
        torch.testing.assert_close(
            stored.read(layout.checkpoint), model.get_parameter(weight.name).detach(), rtol=0, atol=0
        )
        sizes = {layout.checkpoint.tensors[part].shape[stored.output_dim] for part in stored.parts}
        assert sizes == {model.config.get_text_config().hidden_size}
        parts[weight.name] = stored.parts
    return parts


@pytest.mark.parametrize(
    ("model_type", "apart"),
    [
        ("mixtral", "model.layers.1.block_sparse_moe.experts.{}.w2.weight"),
        ("qwen3_moe", "model.layers.1.mlp.experts.{}.down_proj.weight"),
        ("deepseek_v3", "model.layers.1.mlp.experts.{}.down_proj.weight"),
    ],
)
def test_experts_are_found_stored_apart_and_stacked(model_type: str, apart: str, tmp_path: Path) -> None:
    """Release 4 stores them apart, and release 5 as it was told to."""
    model = model_of(model_type)
    model.save_pretrained(tmp_path / "apart")
    assert assert_all_found(model, layout_of(model, tmp_path / "apart"))[DOWN] == tuple(map(apart.format, range(4)))
    model.save_pretrained(tmp_path / "stacked", save_original_format=False)
    assert assert_all_found(model, layout_of(model, tmp_path / "stacked"))[DOWN] == (DOWN,)


def test_ten_experts_and_more_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    config = tiny_family_config("mixtral")
    config.num_local_experts = 12
    model = random_model(config)
    model.save_pretrained(tmp_path)
    parts = assert_all_found(model, layout_of(model, tmp_path))[DOWN]
    assert [int(part.split(".")[5]) for part in parts] == list(range(12))


def with_tensors(directory: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Path:
    file = directory / "model.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in change(load_file(file)).items()}, file, {"format": "pt"})
    return directory


def test_weights_that_are_transposed_on_loading_are_folded_as_they_are_stored(tmp_path: Path) -> None:
    """Qwen 3 VL's experts, which release 4 has the other way round."""
    name = "model.language_model.layers.1.mlp.experts.down_proj"
    model = model_of("qwen3_vl_moe")
    for directory in (tmp_path / "new", tmp_path / "old"):
        model.save_pretrained(directory)
    with_tensors(tmp_path / "old", lambda tensors: {**tensors, name: tensors[name].transpose(1, 2)})
    for directory, output_dim in (("new", -2), ("old", -1)):
        layout = layout_of(model, tmp_path / directory)
        assert_all_found(model, layout)
        assert layout.find(name, -2).output_dim == output_dim


@pytest.mark.parametrize("family", ["llama", "gpt2", "neox"])
def test_a_parameter_is_found_with_and_without_the_base_model_prefix(family: str, tmp_path: Path) -> None:
    model = tiny_model(family)
    weight = find_output_projections(model, [Target(1, "mlp")])[0].weights[0]
    prefix = f"{model.base_model_prefix}."
    model.save_pretrained(tmp_path / "with")
    model.base_model.save_pretrained(tmp_path / "without")
    parts = {
        directory: layout_of(model, tmp_path / directory).find(weight.name, weight.output_dim).parts
        for directory in ("with", "without")
    }
    assert weight.name.startswith(prefix)
    assert parts == {"with": (weight.name,), "without": (weight.name.removeprefix(prefix),)}


def test_a_parameter_that_the_checkpoint_does_not_store_is_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    model = model_of("mixtral")
    with pytest.raises(InputError, match=naming(DOWN)):
        layout_of(model, tiny_checkpoint).find(DOWN, -2)


def test_a_missing_expert_is_refused(tmp_path: Path) -> None:
    model = model_of("mixtral")
    model.save_pretrained(tmp_path)
    lost = "model.layers.1.block_sparse_moe.experts.2.w2.weight"
    with_tensors(tmp_path, lambda tensors: {name: tensor for name, tensor in tensors.items() if name != lost})
    with pytest.raises(InputError, match=naming(DOWN, "model.layers.1.block_sparse_moe.experts.0.w2.weight")):
        layout_of(model, tmp_path).find(DOWN, -2)


def test_a_tensor_of_another_shape_is_refused(tmp_path: Path) -> None:
    model = model_of("mixtral")
    model.save_pretrained(tmp_path, save_original_format=False)
    with_tensors(tmp_path, lambda tensors: {**tensors, DOWN: tensors[DOWN].transpose(1, 2)})
    with pytest.raises(InputError, match=naming(DOWN, (4, 48, 32))):
        layout_of(model, tmp_path).find(DOWN, -2)


def test_the_wrong_dimension_does_not_commute_with_the_conversion(tmp_path: Path) -> None:
    """Negative control of the trial: in a square weight either dimension could be the hidden one."""
    config = tiny_family_config("mixtral")
    config.intermediate_size = config.hidden_size
    model = random_model(config)
    model.save_pretrained(tmp_path)
    layout = layout_of(model, tmp_path)
    source, parameter = layout.sources[DOWN], model.get_parameter(DOWN)
    assert source.commutes(DOWN, parameter, -2, (32, 32), -2)
    assert not source.commutes(DOWN, parameter, -2, (32, 32), -1)
    assert layout.find(DOWN, -2).output_dim == -2
    assert layout.find(DOWN, -1).output_dim == -1
    assert replace(source, converter=None).commutes(DOWN, parameter, -2, (4, 32, 32), -2)


def test_new_biases_are_named_after_the_weights_they_go_with(tmp_path: Path) -> None:
    model = tiny_model("llama")
    model.base_model.save_pretrained(tmp_path)
    layout = layout_of(model, tmp_path)
    assert layout.new_bias_name("model.layers.1.mlp.down_proj.bias") == "layers.1.mlp.down_proj.bias"
    with pytest.raises(InputError, match=naming("model.layers.1.mlp.other.bias", "--center linear")):
        layout.new_bias_name("model.layers.1.mlp.other.bias")
