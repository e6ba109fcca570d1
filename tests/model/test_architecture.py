"""Output projections are found in every family, and whatever is found wrongly is refused by a numerical check."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from transformers import (
    ApertusConfig,
    FalconConfig,
    GPTBigCodeConfig,
    GPTJConfig,
    GraniteConfig,
    Olmo2Config,
)

from sea_export.edit.fold import fold_parameters
from sea_export.errors import InputError
from sea_export.export.fold_check import check_fold
from sea_export.model.architecture import (
    OutputProjection,
    ProjectionWeight,
    decoder_layers,
    find_output_projections,
    hidden_size,
    layers_with,
)
from sea_export.model.bias_switch import bias_switch
from sea_export.model.load_model import skeleton
from sea_export.model.targets import Target
from sea_export.options import EditOptions
from tests.helpers.family_configs import tiny_family_config
from tests.helpers.messages import naming
from tests.helpers.tiny_edits import layer_edit
from tests.helpers.tiny_models import family_parameters, tiny_config, tiny_model

ALL_TARGETS = [Target(layer, component) for layer in range(4) for component in ("attention", "mlp")]

# Family -> the list of layers, and by component the linear map that ends its block, whether its weight is
# transposed, and whether it has a bias.
PROJECTIONS = {
    "llama": ("model.layers", {"mlp": ("mlp.down_proj", -2, False), "attention": ("self_attn.o_proj", -2, False)}),
    "llama-tied": ("model.layers", {"mlp": ("mlp.down_proj", -2, False), "attention": ("self_attn.o_proj", -2, False)}),
    "llama-bias": ("model.layers", {"mlp": ("mlp.down_proj", -2, True), "attention": ("self_attn.o_proj", -2, True)}),
    "gpt2": ("transformer.h", {"mlp": ("mlp.c_proj", -1, True), "attention": ("attn.c_proj", -1, True)}),
    "neox": (
        "gpt_neox.layers",
        {"mlp": ("mlp.dense_4h_to_h", -2, True), "attention": ("attention.dense", -2, True)},
    ),
    "gemma2": ("model.layers", {"mlp": ("mlp.down_proj", -2, False), "attention": ("self_attn.o_proj", -2, False)}),
    "qwen3": ("model.layers", {"mlp": ("mlp.down_proj", -2, False), "attention": ("self_attn.o_proj", -2, False)}),
    "mistral": ("model.layers", {"mlp": ("mlp.down_proj", -2, False), "attention": ("self_attn.o_proj", -2, False)}),
    "phi3": ("model.layers", {"mlp": ("mlp.down_proj", -2, False), "attention": ("self_attn.o_proj", -2, False)}),
}
_SMALL = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 64, "pad_token_id": 0}


@pytest.mark.parametrize("family", family_parameters())
def test_writers_are_found(family):
    list_name, blocks = PROJECTIONS[family]
    for projection, target in zip(find_output_projections(tiny_model(family), ALL_TARGETS), ALL_TARGETS, strict=True):
        name, output_dim, has_bias = blocks[target.component]
        name = f"{list_name}.{target.layer}.{name}"
        weight = ProjectionWeight(f"{name}.weight", output_dim, f"{name}.bias" if has_bias else None)
        assert projection == OutputProjection(target, name.rpartition(".")[0], 24, (weight,))


@pytest.mark.parametrize("family", family_parameters())
def test_folds_are_checked_for_every_family(family):
    model = skeleton(tiny_config(family))
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    check_fold(model, find_output_projections(model, ALL_TARGETS))
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}


@pytest.mark.parametrize("family", family_parameters())
def test_a_skeleton_has_the_structure_of_the_model(family):
    expected = {name: parameter.shape for name, parameter in tiny_model(family).named_parameters()}
    assert {name: parameter.shape for name, parameter in skeleton(tiny_config(family)).named_parameters()} == expected


@pytest.mark.parametrize("family", family_parameters())
def test_decoder_layers_are_numbered_from_zero_and_all_there(family):
    model = tiny_model(family)
    name, layers = decoder_layers(model)
    assert name == PROJECTIONS[family][0]
    assert layers is model.get_submodule(name)
    assert len(layers) == 4
    assert hidden_size(model.config) == 24


@pytest.mark.parametrize(
    "config",
    [
        FalconConfig(**_SMALL, new_decoder_architecture=False),
        GPTJConfig(n_embd=24, n_layer=2, n_head=4, vocab_size=64, rotary_dim=4),
        GPTBigCodeConfig(n_embd=24, n_layer=2, n_head=4, vocab_size=64),
        GraniteConfig(**_SMALL, intermediate_size=40, num_key_value_heads=2),
        Olmo2Config(**_SMALL, intermediate_size=40, num_key_value_heads=2),
        # Its activation function has parameters that are numbers.
        ApertusConfig(**_SMALL, intermediate_size=40, num_key_value_heads=2),
    ],
    ids=lambda config: config.model_type,
)
@pytest.mark.parametrize("component", ["mlp", "attention"])
def test_families_without_an_entry_of_their_own_are_found_by_structure(config, component):
    model = skeleton(config)
    check_fold(model, find_output_projections(model, [Target(1, component)]))


# Family -> component -> the edited module of layer 1, within the layer, and what the weights in it are called.
IRREGULAR = {
    "bloom": {"mlp": ("mlp.dense_4h_to_h", [""]), "attention": ("self_attention.dense", [""])},
    "opt": {"mlp": ("fc2", [""]), "attention": ("self_attn", ["out_proj"])},
    "mpt": {"mlp": ("ffn.down_proj", [""]), "attention": ("attn", ["out_proj"])},
    "gpt_neo": {"mlp": ("mlp", ["c_proj"]), "attention": ("attn", ["attention.out_proj"])},
    "dbrx": {"mlp": ("ffn", ["experts.mlp.w2"]), "attention": ("norm_attn_norm.attn", ["out_proj"])},
    "deepseek_v3": {
        "mlp": ("mlp", ["experts.down_proj", "shared_experts.down_proj"]),
        "attention": ("self_attn", ["o_proj"]),
    },
    "nemotron_h": {"mlp": ("mixer", ["experts.down_proj", "shared_experts.down_proj"])},
    "recurrent_gemma": {"mlp": ("mlp_block", ["down_proj"])},
}


@pytest.mark.parametrize("family", IRREGULAR)
def test_the_edited_module_is_the_block_or_what_comes_before_a_residual(family):
    model = skeleton(tiny_family_config(family))
    layer = f"{decoder_layers(model)[0]}.1"
    for component, (module, weights) in IRREGULAR[family].items():
        (projection,) = find_output_projections(model, [Target(1, component)])
        assert projection.module_name == f"{layer}.{module}"
        names = [weight.name.removesuffix(".weight") for weight in projection.weights]
        assert names == [f"{layer}.{module}.{weight}".removesuffix(".") for weight in weights]


def test_layers_of_a_vision_tower_are_not_taken_for_the_decoder():
    """Both have as many layers, with MLPs and attention blocks of the same names."""
    model = skeleton(tiny_family_config("gemma3"))
    assert len(model.model.vision_tower.encoder.layers) == len(decoder_layers(model)[1])
    assert decoder_layers(model)[0] == "model.language_model.layers"


def test_parameters_are_not_shared_just_because_embeddings_are_tied():
    model = tiny_model("llama-tied")
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert find_output_projections(model, [Target(0, "mlp")])


# Refusals


@pytest.mark.parametrize("layer", [-1, 4])
def test_a_layer_that_does_not_exist_is_refused(llama, layer):
    with pytest.raises(InputError, match=naming(f"layer {layer}", 0, 3)):
        find_output_projections(llama, [Target(layer, "mlp")])


def test_a_layer_without_the_block_is_refused():
    """Jamba's first layer has a state-space block where others have attention."""
    model = skeleton(tiny_family_config("jamba"))
    assert layers_with(model, "attention") == (1, 3)
    assert layers_with(model, "mlp") == (0, 1, 2, 3)
    with pytest.raises(InputError, match=naming("attention", "model.layers.0", "mamba")):
        find_output_projections(model, [Target(0, "attention")])


def test_an_mlp_in_two_parts_is_refused():
    """Granite adds what its experts and its shared MLP give in the layer itself."""
    with pytest.raises(InputError, match=r"layers\.1\b.*block_sparse_moe.*shared_mlp\.output_linear"):
        find_output_projections(skeleton(tiny_family_config("granitemoeshared")), [Target(1, "mlp")])


def test_a_block_that_layers_share_is_refused():
    with pytest.raises(
        InputError,
        match=r"layers\.1\.shared_transf\.feed_forward\.down_proj\.weight\b.*layers\.3",
    ):
        find_output_projections(skeleton(tiny_family_config("zamba")), [Target(1, "mlp")])


def test_a_model_without_mlps_and_attention_is_refused():
    with pytest.raises(InputError, match=naming("MambaForCausalLM", "MLP", "attention")):
        decoder_layers(skeleton(tiny_family_config("mamba")))


def test_an_output_map_that_is_not_recognised_is_refused(llama):
    model = copy.deepcopy(llama)
    mlp = model.model.layers[1].mlp
    mlp.last = mlp.down_proj
    del mlp.down_proj
    with pytest.raises(InputError, match=naming("model.layers.1.mlp", "LlamaMLP", "Linear")):
        find_output_projections(model, [Target(1, "mlp")])


def test_an_output_map_of_another_size_is_refused(llama):
    model = copy.deepcopy(llama)
    model.model.layers[1].mlp.down_proj = nn.Linear(40, 30, bias=False)
    with pytest.raises(InputError, match=naming("model.layers.1.mlp.down_proj", 30, 24)):
        find_output_projections(model, [Target(1, "mlp")])


def test_an_output_map_that_is_not_linear_is_refused(llama):
    model = copy.deepcopy(llama)
    model.model.layers[1].mlp.down_proj = nn.Embedding(24, 24)
    with pytest.raises(InputError, match=naming("model.layers.1.mlp.down_proj", "Embedding")):
        find_output_projections(model, [Target(1, "mlp")])


def test_a_weight_shared_by_two_layers_is_refused(llama):
    """Editing one layer would edit the other."""
    model = copy.deepcopy(llama)
    model.model.layers[2].mlp.down_proj.weight = model.model.layers[1].mlp.down_proj.weight
    for layer, other in ((1, 2), (2, 1)):
        with pytest.raises(
            InputError, match=naming(*(f"model.layers.{one}.mlp.down_proj.weight" for one in (layer, other)))
        ):
            find_output_projections(model, [Target(layer, "mlp")])


def test_a_model_without_a_list_of_decoder_layers_is_refused(llama):
    model = copy.deepcopy(llama)
    model.config.num_hidden_layers = 3
    with pytest.raises(InputError, match=naming("LlamaForCausalLM", 3)):
        decoder_layers(model)


@pytest.mark.parametrize("family", ["llama", "gpt2", "neox"])
def test_folded_parameters_load_into_the_model_they_came_from(family):
    """Same names, shapes and dtypes as the parameters that they replace."""
    model = tiny_model(family)
    without_effect = layer_edit(options=EditOptions(strength=0))
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
    for projection in find_output_projections(model, ALL_TARGETS):
        for name, tensor in fold_parameters(projection, [without_effect], parameters).items():
            assert torch.equal(tensor, parameters[name])
            assert tensor.data_ptr() != parameters[name].data_ptr()


# Biases by configuration


@pytest.mark.parametrize(
    ("component", "changes", "maps"),
    [
        ("mlp", {"mlp_bias": True}, ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]),
        ("attention", {"attention_bias": True}, [f"self_attn.{name}_proj" for name in "qkvo"]),
    ],
)
def test_llama_gets_biases_by_its_own_switch(component, changes, maps):
    config = tiny_config("llama")
    before = config.to_dict()
    model = skeleton(config)
    found, added = bias_switch(model, find_output_projections(model, [Target(1, component)]))
    assert found == changes
    assert set(added) == {f"model.layers.{layer}.{name}.bias" for layer in range(4) for name in maps}
    assert model.config.to_dict() == before


def test_both_switches_are_turned_where_both_blocks_are_edited():
    model = skeleton(tiny_config("llama"))
    changes, added = bias_switch(model, find_output_projections(model, ALL_TARGETS))
    assert changes == {"mlp_bias": True, "attention_bias": True}
    assert len(added) == 4 * 7


@pytest.mark.parametrize(
    ("family", "component"),
    [*((family, "mlp") for family in ("mistral", "phi3", "gemma2", "neox", "gpt2")), ("mistral", "attention")],
)
def test_a_family_without_a_switch_is_refused(family, component):
    """Also where the bias is there already: then no switch can be what makes room for it."""
    model = skeleton(tiny_config(family))
    projections = find_output_projections(model, [Target(1, component)])
    facts = (projections[0].weights[0].bias_name, model.config.model_type, "--center linear")
    with pytest.raises(InputError, match=naming(*facts)):
        bias_switch(model, projections)
