"""Where a model writes into its residual stream: the edited modules and the parameters of their outputs.

Layers, MLPs and attention blocks are found by structure, with short tables of the names in use. What is found is a
guess until `sea_export.proof.prove_fold` has proved it.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from sea_export.edit import COMPONENTS, Target
from sea_export.errors import InputError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

__all__ = [
    "Writer",
    "WriterWeight",
    "bias_switch",
    "decoder_layers",
    "find_writers",
    "hidden_size",
    "skeleton",
    "stored_name",
]

# Names of the child modules of a decoder layer, most specific first.
_CHILDREN = {
    "mlp": ("mlp", "feed_forward", "ffn", "ff", "block_sparse_moe", "moe"),
    "attention": ("self_attn", "self_attention", "attention", "attn"),
}
# Names of the linear map that ends an MLP or an attention block.
_OUTPUT_MAPS = {
    "mlp": ("down_proj", "c_proj", "dense_4h_to_h", "fc2", "fc_out", "w2", "wo", "proj_2", "down"),
    "attention": ("o_proj", "out_proj", "c_proj", "dense", "wo", "out"),
}
# Config switches that give a family's linear maps their biases.
_BIAS_SWITCHES = {"mlp": ("mlp_bias", "use_mlp_bias"), "attention": ("attention_bias",)}


@dataclass(frozen=True)
class WriterWeight:
    """One weight whose product is (a term of) the edited output."""

    name: str
    """The parameter's name in the model."""
    output_dim: int
    """The dimension of the tensor that runs over the hidden size."""
    bias: str | None
    """The name of its bias, or None."""


@dataclass(frozen=True)
class Writer:
    """A module whose output is edited, with every parameter that writes it."""

    target: Target
    module_name: str
    size: int
    """The hidden size d."""
    weights: tuple[WriterWeight, ...]


def hidden_size(config: PretrainedConfig) -> int:
    """The width d of the residual stream."""
    return int(config.get_text_config().hidden_size)


def decoder_layers(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """The name and the list of the model's decoder layers: layer i is element i.

    Raises:
        InputError: no ModuleList, or more than one, has as many elements as the config says.
    """
    count = model.config.get_text_config().num_hidden_layers
    found = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == count and _child(module[0], "attention")
    ]
    if len(found) != 1:
        names = ", ".join(name for name, _ in found) or "none"
        raise InputError(
            f"{type(model).__name__} has no single list of {count} decoder layers (found: {names}): "
            "this architecture is not supported"
        )
    return found[0]


def find_writers(model: PreTrainedModel, targets: Iterable[Target]) -> list[Writer]:
    """The modules that are edited and the parameters that write their outputs.

    Args:
        model: the model, on any device (`meta` included).
        targets: the places to edit.

    Raises:
        InputError: a layer does not exist, or its block or the linear map that ends it is not recognised.
    """
    list_name, layers = decoder_layers(model)
    size = hidden_size(model.config)
    shared = _shared_parameters(model)
    writers = []
    for target in targets:
        if not 0 <= target.layer < len(layers):
            raise InputError(f"layer {target.layer} does not exist: the model has layers 0 to {len(layers) - 1}")
        layer_name = f"{list_name}.{target.layer}"
        child = _child(layers[target.layer], target.component)
        if child is None:
            children = ", ".join(name for name, _ in layers[target.layer].named_children())
            raise InputError(
                f"no {target.component} block is recognised in {layer_name} of {type(model).__name__} "
                f"(its children: {children}): this architecture is not supported"
            )
        module_name = f"{layer_name}.{child}"
        weights = _output_weights(model.get_submodule(module_name), module_name, target.component, size)
        for weight in weights:
            if weight.name in shared:
                raise InputError(f"{weight.name} is shared with {shared[weight.name]}: editing it would edit both")
        writers.append(Writer(target, module_name, size, weights))
    return writers


def _child(layer: nn.Module, component: str) -> str | None:
    names = {name for name, _ in layer.named_children()}
    return next((name for name in _CHILDREN[component] if name in names), None)


def _output_weights(module: nn.Module, module_name: str, component: str, size: int) -> tuple[WriterWeight, ...]:
    """The maps inside `module` that end in the hidden size and bear the name of an output map."""
    for wanted in _OUTPUT_MAPS[component]:
        weights = [
            _linear_weight(f"{module_name}.{name}", child, size)
            for name, child in module.named_modules()
            if name.rsplit(".", 1)[-1] == wanted
            and (_is_linear(child) or isinstance(getattr(child, "weight", None), Tensor))
        ]
        if weights:
            return tuple(weights)
    kinds = ", ".join(sorted({type(child).__name__ for child in module.modules()} - {type(module).__name__}))
    raise InputError(
        f"no linear map that writes the output of {module_name} ({type(module).__name__} with {kinds}) is "
        "recognised: this architecture is not supported"
    )


def _is_linear(module: nn.Module) -> bool:
    """Whether the module is a linear map of PyTorch's layout: quantized ones are of other classes and storage."""
    return all(isinstance(getattr(module, name, None), int) for name in ("in_features", "out_features"))


def _linear_weight(name: str, module: nn.Module, size: int) -> WriterWeight:
    if _is_linear(module):
        output_dim, outputs = 0, int(module.out_features)  # type: ignore[arg-type]
    elif type(module).__name__ == "Conv1D":  # GPT-2's transposed linear map, of transformers.pytorch_utils
        weight = module.weight
        assert isinstance(weight, Tensor)
        output_dim, outputs = 1, weight.shape[1]
    else:
        raise InputError(f"{name} is a {type(module).__name__}, which is no linear map that is known: not supported")
    if outputs != size:
        raise InputError(f"{name} writes {outputs} features where the hidden size is {size}: not supported")
    bias = f"{name}.bias" if getattr(module, "bias", None) is not None else None
    return WriterWeight(f"{name}.weight", output_dim, bias)


def _shared_parameters(model: nn.Module) -> dict[str, str]:
    """Names of parameters that are one and the same tensor as another, each with that other's name."""
    first: dict[int, str] = {}
    shared: dict[str, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        other = first.setdefault(id(parameter), name)
        if other != name:
            shared[name], shared[other] = other, name
    return shared


def skeleton(config: PretrainedConfig, *, trust_remote_code: bool = False) -> PreTrainedModel:
    """The model of a config without its weights (on the `meta` device): names and structure only."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        # Eager attention, because the others look at mask values, which do not exist on this device.
        model = AutoModelForCausalLM.from_config(
            copy.deepcopy(config), trust_remote_code=trust_remote_code, attn_implementation="eager"
        )
    return model.eval()


def stored_name(name: str, stored: Collection[str], model: PreTrainedModel) -> str:
    """The name under which a checkpoint stores a parameter of the model.

    Args:
        name: the parameter's name in the model.
        stored: the names in the checkpoint.
        model: the model (or its skeleton), for its base model's prefix, which checkpoints may lack or have.

    Raises:
        InputError: the checkpoint stores it under no name that is known.
    """
    prefix = f"{model.base_model_prefix}."
    for candidate in (name, name.removeprefix(prefix), prefix + name):
        if candidate in stored:
            return candidate
    raise InputError(
        f"the checkpoint stores no tensor named {name}, which the edit must fold: "
        "its layout is not supported, or it belongs to another architecture"
    )


def bias_switch(config: PretrainedConfig, writers: Sequence[Writer]) -> tuple[dict[str, bool], dict[str, Tensor]]:
    """How a model whose writers have no bias can be given one through its config.

    Args:
        config: the model's config.
        writers: the writers that need a bias.

    Returns:
        The config changes, and every parameter that appears with them (on `meta`, by name): all are biases, and
        those of the writers are among them.

    Raises:
        InputError: the architecture has no such switch.
    """
    original = {name for name, _ in skeleton(config).named_parameters()}
    switched = copy.deepcopy(config)
    changes: dict[str, bool] = {}
    for component in sorted({writer.target.component for writer in writers}, key=COMPONENTS.index):
        for switch in _BIAS_SWITCHES[component]:
            if getattr(switched, switch, None) is False:
                setattr(switched, switch, True)
                changes[switch] = True
    added = {name: tensor for name, tensor in skeleton(switched).named_parameters() if name not in original}
    needed = {weight.name.removesuffix("weight") + "bias" for writer in writers for weight in writer.weights}
    if not needed <= added.keys() or not all(name.endswith(".bias") for name in added):
        raise InputError(
            f"{config.model_type} has no config switch that gives {sorted(needed)[0]} a place: "
            "choose --center linear, or another --format"
        )
    return changes, dict(added)
