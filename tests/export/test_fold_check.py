"""Whatever is found wrongly is refused by a numerical check, which takes little memory for any size of the model."""

from __future__ import annotations

import resource
from dataclasses import replace

import pytest
import torch
from torch import nn
from transformers import (
    BloomConfig,
    DeepseekV3Config,
    FalconH1Config,
    GptOssConfig,
    LlamaConfig,
    MixtralConfig,
    PretrainedConfig,
    Qwen2MoeConfig,
)

from sea_export.errors import InputError, SeaExportError
from sea_export.export.fold_check import check_fold
from sea_export.model.architecture import OutputProjection, find_output_projections
from sea_export.model.load_model import skeleton
from sea_export.model.targets import Target
from tests.helpers.messages import naming
from tests.helpers.tiny_models import tiny_config

ALL_TARGETS = [Target(layer, component) for layer in range(4) for component in ("attention", "mlp")]
_SMALL = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 64, "pad_token_id": 0}
_MIXTURES = {
    "mixtral": MixtralConfig(**_SMALL, intermediate_size=40, num_key_value_heads=2, num_local_experts=4),
    "qwen2_moe": Qwen2MoeConfig(
        **_SMALL,
        intermediate_size=40,
        moe_intermediate_size=16,
        shared_expert_intermediate_size=16,
        num_key_value_heads=2,
        num_experts=4,
    ),
    # The experts' weights are square, so that their shape does not tell in which direction they multiply.
    "gpt_oss": GptOssConfig(**_SMALL, intermediate_size=24, num_key_value_heads=2, head_dim=6, num_local_experts=4),
}


def projection_of(config: PretrainedConfig, layer: int = 1, component: str = "mlp") -> OutputProjection:
    (projection,) = find_output_projections(skeleton(config), [Target(layer, component)])
    return projection


def test_a_wrong_module_is_refused_by_proof():
    """BLOOM's blocks return residual + W x: folding W edits only one of the two terms."""
    config = BloomConfig(hidden_size=24, n_layer=2, n_head=4, vocab_size=64)
    for component, module in (("mlp", "mlp"), ("attention", "self_attention")):
        projection = projection_of(config, 0, component)
        check_fold(skeleton(config), [projection])
        wrong = replace(projection, module_name=f"transformer.h.0.{module}")
        with pytest.raises(SeaExportError, match=naming(f"transformer.h.0.{module}", "relative error")) as refusal:
            check_fold(skeleton(config), [wrong])
        assert refusal.value.exit_code == 1


def test_a_weight_folded_along_the_wrong_dimension_is_refused_by_proof():
    """A square weight has the same shape either way."""
    model = skeleton(tiny_config("llama"))
    projection = projection_of(tiny_config("llama"), component="attention")
    check_fold(model, [projection])
    wrong = replace(projection, weights=(replace(projection.weights[0], output_dim=-1),))
    with pytest.raises(SeaExportError, match=naming("model.layers.1.self_attn", "relative error")):
        check_fold(model, [wrong])


def test_a_bias_that_was_forgotten_is_refused_by_proof():
    projection = projection_of(tiny_config("llama-bias"))
    wrong = replace(projection, weights=(replace(projection.weights[0], bias=None),))
    with pytest.raises(SeaExportError, match="relative error"):
        check_fold(skeleton(tiny_config("llama-bias")), [wrong])


def test_a_weight_that_does_not_write_the_output_is_refused_by_proof():
    config = LlamaConfig(**_SMALL, intermediate_size=24, num_key_value_heads=2)
    projection = projection_of(config)
    wrong = replace(projection, weights=(replace(projection.weights[0], name="model.layers.1.mlp.up_proj.weight"),))
    with pytest.raises(SeaExportError, match=naming("model.layers.1.mlp.up_proj.weight", "relative error")):
        check_fold(skeleton(config), [wrong])


class _SumOfTwo(nn.Module):
    """An MLP whose output is the sum of two linear maps, as that of shared and routed experts is."""

    def __init__(self, size: int, scale: float = 1.0) -> None:
        super().__init__()
        self.one = nn.ModuleDict({"down_proj": nn.Linear(size, size, bias=False)})
        self.other = nn.ModuleDict({"down_proj": nn.Linear(size, size, bias=False)})
        self.scale = scale

    def forward(self, hidden):
        return self.one["down_proj"](hidden) + self.scale * self.other["down_proj"](hidden.tanh())


def test_one_of_two_writers_is_refused_by_proof():
    model = skeleton(tiny_config("llama"))
    with torch.device("meta"):
        model.model.layers[1].mlp = _SumOfTwo(24)
    (projection,) = find_output_projections(model, [Target(1, "mlp")])
    assert [weight.name for weight in projection.weights] == [
        "model.layers.1.mlp.one.down_proj.weight",
        "model.layers.1.mlp.other.down_proj.weight",
    ]
    check_fold(model, [projection])
    for weight in projection.weights:
        with pytest.raises(SeaExportError, match="relative error"):
            check_fold(model, [replace(projection, weights=(weight,))])


def test_a_model_that_does_not_run_by_itself_is_refused():
    model = skeleton(tiny_config("llama"))
    (projection,) = find_output_projections(model, [Target(1, "mlp")])
    model.model.layers[0].forward = None
    with pytest.raises(SeaExportError, match=naming("LlamaForCausalLM", "random weights")):
        check_fold(model, [projection])


# Mixtures of experts


@pytest.mark.parametrize("name", _MIXTURES)
def test_all_experts_are_needed_and_suffice(name):
    config = _MIXTURES[name]
    projection = projection_of(config)
    check_fold(skeleton(config), [projection])
    experts = projection.weights[0]
    assert experts.experts
    assert experts.name == "model.layers.1.mlp.experts.down_proj"
    other_dim = replace(experts, output_dim=-3 - experts.output_dim)
    wrong = [replace(projection, weights=projection.weights[1:])] if len(projection.weights) > 1 else []
    if name == "gpt_oss":
        wrong += [
            replace(projection, weights=(replace(experts, bias=None),)),
            replace(projection, weights=(other_dim,)),
        ]
    for guess in wrong:
        with pytest.raises(SeaExportError, match="relative error"):
            check_fold(skeleton(config), [guess])


# The constant of an affine edit


@pytest.mark.parametrize("family", ["llama", "llama-bias", "gpt2", "gemma2"])
def test_a_constant_goes_through_a_linear_map_that_ends_a_block(family):
    model = skeleton(tiny_config(family))
    check_fold(model, find_output_projections(model, ALL_TARGETS), needs_bias=True)


def test_a_constant_that_is_scaled_on_its_way_is_refused():
    """Falcon-H1 multiplies what the linear map gives, so that its bias would be multiplied too."""
    sizes = {"mamba_n_heads": 4, "mamba_d_ssm": 48, "mamba_d_state": 8, "intermediate_size": 40}
    config = FalconH1Config(**_SMALL, **sizes, num_key_value_heads=2, mlp_multipliers=[0.5, 0.25])
    model, projection = skeleton(config), projection_of(config)
    check_fold(model, [projection])
    with pytest.raises(InputError, match=naming("model.layers.1.feed_forward.down_proj.weight", "--center linear")):
        check_fold(model, [projection], needs_bias=True)


def test_a_constant_that_would_be_counted_twice_is_refused():
    model = skeleton(tiny_config("llama"))
    with torch.device("meta"):
        model.model.layers[1].mlp = _SumOfTwo(24)
    projections = find_output_projections(model, [Target(1, "mlp")])
    with pytest.raises(InputError, match=naming("model.layers.1.mlp.one.down_proj.weight", "--center linear")):
        check_fold(model, projections, needs_bias=True)


def test_experts_without_biases_have_no_place_for_a_constant():
    config = _MIXTURES["mixtral"]
    with pytest.raises(InputError, match=naming("model.layers.1.mlp.experts.down_proj", "bias", "--center linear")):
        check_fold(skeleton(config), [projection_of(config)], needs_bias=True)


def test_weights_of_experts_that_sum_to_one_pass_a_constant_on():
    config = _MIXTURES["gpt_oss"]
    check_fold(skeleton(config), [projection_of(config)], needs_bias=True)


# What it takes and leaves


def test_a_proof_leaves_the_skeleton_as_it_was():
    model = skeleton(tiny_config("llama"))
    check_fold(model, find_output_projections(model, ALL_TARGETS))
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}


@pytest.mark.slow
def test_a_check_at_full_size_holds_one_expert_at_a_time():
    """DeepSeek-V3's own sizes: the experts of one layer alone would take 45 GB of float32."""
    model = skeleton(DeepseekV3Config(num_hidden_layers=2, first_k_dense_replace=1))
    (projection,) = find_output_projections(model, [Target(1, "mlp")])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    check_fold(model, [projection])
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 2 * 2**20, f"{grown / 2**20:.2f} GB"
