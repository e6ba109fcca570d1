"""Which modules of a model are edited, and which parameters give their outputs: the output projections.

Layers, MLPs and attention blocks are found by structure, with short tables of names (`sea_export.model.block_names`).
What is found is a guess until `sea_export.export.fold_check.check_fold` has checked it numerically.

**What is edited** is what a block computes, before anything else is done to it on its way into the residual stream.
A norm after the block (Gemma 2 and later, OLMo 2), a factor (Granite) or a gate between streams comes after the edit.
Blocks that run side by side (Phi-2, GPT-J, Falcon, Cohere) are edited one by one. Where a block adds the residual
itself (BLOOM), or where there is no block (OPT), the output of the linear map that ends it is edited. Capture, run-time
edit, fold and exported code all take the edited module from the same `OutputProjection`.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor, nn

from sea_export.errors import InputError
from sea_export.model.block_names import BLOCKS, KINDS, OF_MANY_KINDS, OUTPUT_MAPS
from sea_export.model.targets import COMPONENTS, EMBEDDING, Target

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

__all__ = [
    "OutputProjection",
    "ProjectionWeight",
    "context_length",
    "decoder_layers",
    "find_output_projections",
    "hidden_size",
    "layers_with",
    "linear_weight",
    "position_limit",
    "shared_parameters",
]


@dataclass(frozen=True)
class ProjectionWeight:
    """One weight that gives the edited output, or a term of it (one expert of a mixture)."""

    name: str
    """The parameter's name in the model."""
    output_dim: int
    """The dimension of the tensor that has the hidden size: -2 as in PyTorch's linear maps, or -1."""
    bias: str | None
    """The name of its bias, or None."""
    experts: bool = False
    """Whether it holds the weights of all experts of a mixture in one tensor, and is not a linear map by itself."""
    says_transposed: bool = False
    """Whether the module that holds the experts has `is_transposed = True`: inputs come before outputs."""

    @property
    def module(self) -> str:
        """The name of the linear map, or of the module that holds the weights of the experts."""
        return self.name.rpartition(".")[0]

    @property
    def transposed(self) -> bool:
        """Whether inputs come before outputs."""
        return self.output_dim == -1

    @property
    def bias_name(self) -> str | None:
        """The name that its bias has or would have; None where it cannot have one."""
        return self.bias or (None if self.experts else f"{self.module}.bias")


@dataclass(frozen=True)
class OutputProjection:
    """A module whose output is edited, with every weight that gives this output."""

    target: Target
    module_name: str
    """The block, or the linear map that ends it. Its output, or the first of its outputs, is edited."""
    size: int
    """The hidden size d."""
    weights: tuple[ProjectionWeight, ...]
    in_mixture: bool = False
    """Whether it is an MLP in a model that stores the weights of its experts stacked in one tensor."""


def context_length(config: PretrainedConfig) -> int | None:
    """The longest text that the model reads, in tokens; None where its config does not say."""
    length = getattr(config.get_text_config(), "max_position_embeddings", None)
    return length if isinstance(length, int) and length > 0 else None


def position_limit(model: PreTrainedModel) -> int | None:
    """The longest text that a model can compute, in tokens: it has an embedding for so many positions.

    None for a model that computes its positions. It reads longer texts than those that it was trained on, badly.

    Args:
        model: the model.
    """
    length = context_length(model.config)
    if length is None:
        return None
    tables = [
        one for one in model.modules() if isinstance(one, nn.Embedding) and one is not model.get_input_embeddings()
    ]
    # Some tables have two more rows, for padding.
    return length if any(length <= table.num_embeddings <= length + 2 for table in tables) else None


def hidden_size(config: PretrainedConfig) -> int:
    """The hidden size d: the width of the residual stream.

    Args:
        config: the model's config, or that of a multimodal model.

    Raises:
        InputError: the config does not give it.
    """
    return int(_of_text(config, "hidden_size"))


def _of_text(config: PretrainedConfig, name: str) -> int:
    """A number from the config of the language model, which is one part of a multimodal model's config."""
    try:
        return getattr(config.get_text_config(decoder=True), name)
    except (AttributeError, ValueError) as error:
        raise _unsupported(config.model_type, f"its config gives no {name} of one language model") from error


def _unsupported(subject: str, problem: str) -> InputError:
    return InputError(f"{subject}: {problem}. This architecture is not supported.")


def decoder_layers(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """The name and the list of the language model's decoder layers: layer i is element i.

    Raises:
        InputError: no ModuleList, or more than one, has as many elements as the config says.
    """
    count = _of_text(model.config, "num_hidden_layers")
    lists = [(name, module) for name, module in _lists_of_language_model(model) if len(module) == count]
    found = [
        (name, module)
        for name, module in lists
        if any(_block(layer, component) for layer in module for component in COMPONENTS)
    ]
    if lists and not found:
        raise _unsupported(type(model).__name__, "no layer has an MLP or an attention block that could be edited")
    if len(found) != 1:
        names = ", ".join(name for name, _ in found) or "none"
        raise _unsupported(type(model).__name__, f"it has no single list of {count} decoder layers (found: {names})")
    return found[0]


def _lists_of_language_model(model: PreTrainedModel) -> Iterator[tuple[str, nn.ModuleList]]:
    """All lists of modules by name, without those of vision and audio towers (models with a config of another type)."""
    text_type = model.config.get_text_config(decoder=True).model_type
    towers: list[str] = []
    for name, module in model.named_modules():
        if any(name.startswith(f"{tower}.") for tower in towers):
            continue
        config = getattr(module, "config", None)
        own_type = getattr(config, "model_type", text_type)
        if name and hasattr(module, "get_input_embeddings") and own_type not in (text_type, model.config.model_type):
            towers.append(name)
        if isinstance(module, nn.ModuleList):
            yield name, module


def layers_with(model: PreTrainedModel, component: str) -> tuple[int, ...]:
    """The numbers of the layers that have a block of a kind: in hybrid models, not all.

    Args:
        model: the model, on any device (`meta` included).
        component: one of `COMPONENTS`.

    Raises:
        InputError: see `decoder_layers`.
    """
    return tuple(index for index, layer in enumerate(decoder_layers(model)[1]) if _block(layer, component))


def find_output_projections(model: PreTrainedModel, targets: Iterable[Target]) -> list[OutputProjection]:
    """The output projections of targets, in their order.

    Args:
        model: the model, on any device (`meta` included).
        targets: what is to be edited. The weight of the embedding may be shared with the head
            (`sea_export.model.tied_head`).

    Raises:
        InputError: a layer does not exist, its block or the linear map that ends it is not recognised, or an edit of
            its weights would edit other layers too.
    """
    list_name, layers = decoder_layers(model)
    size = hidden_size(model.config)
    shared = shared_parameters(model)
    stacked = any(parameter.ndim > 2 and "experts" in name for name, parameter in layers.named_parameters())
    projections = []
    for target in targets:
        if target == EMBEDDING:
            projections.append(_embedding(model, size))
            continue
        if not 0 <= target.layer < len(layers):
            raise InputError(
                f"layer {target.layer}: it does not exist, because the model has layers 0 to {len(layers) - 1}. Choose "
                "one of these, or the model that the edit was fitted on."
            )
        layer, layer_name = layers[target.layer], f"{list_name}.{target.layer}"
        block = _block(layer, target.component)
        if block is None:
            children = ", ".join(name for name, _ in layer.named_children())
            raise InputError(
                f"{layer_name}: no {target.component} block is recognised in this layer of {type(model).__name__} (its "
                f"children: {children}). Choose other layers, or another --target."
            )
        weights = _output_weights(layer, block, f"{layer_name}.", target.component, size)
        _check_alone(layer, block, layer_name, target.component, size)
        for weight in weights:
            if weight.name in shared:
                raise InputError(
                    f"{weight.name}: it is shared with {shared[weight.name]}, and an edit of one would edit both. "
                    "Choose layers without shared weights, or another --target."
                )
        module_name = f"{layer_name}.{block}"
        if len(weights) == 1 and not _can_be_edited(layer.get_submodule(block)):
            module_name = weights[0].module
        projections.append(OutputProjection(target, module_name, size, weights, stacked and target.component == "mlp"))
    return projections


def _embedding(model: PreTrainedModel, size: int) -> OutputProjection:
    """The embedding of tokens, whose weight (vocabulary, d) is what it gives. A head may share it."""
    module = model.get_input_embeddings()
    name = next(name for name, one in model.named_modules() if one is module)
    if not isinstance(module, nn.Embedding) or module.embedding_dim != size:
        raise _unsupported(name, f"it is no embedding of tokens that gives {size} features")
    return OutputProjection(EMBEDDING, name, size, (ProjectionWeight(f"{name}.weight", -1, None),))


def _block(layer: nn.Module, component: str) -> str | None:
    """The name of the layer's block of a kind, relative to the layer; None if there is none."""
    modules = dict(layer.named_modules())
    for name in BLOCKS[component]:
        if name in modules and (name not in OF_MANY_KINDS or _is_of_kind(modules[name], component)):
            return name
    return None


def _can_be_edited(block: nn.Module) -> bool:
    """Whether the block's output is only what it computes, without the residual, and the block is not a sequence of
    modules, to which exported code would have to add the edit as one more step."""
    return "residual" not in inspect.signature(block.forward).parameters and not isinstance(block, nn.Sequential)


def _is_of_kind(module: nn.Module, component: str) -> bool:
    return any(kind in type(module).__name__.lower() for kind in KINDS[component])


def _output_weights(
    layer: nn.Module, block: str, prefix: str, component: str, size: int
) -> tuple[ProjectionWeight, ...]:
    """The linear maps of a block that have the hidden size as their output, and the name of an output map."""
    module = layer.get_submodule(block)
    weights = list(_named_weights(module, f"{prefix}{block}", component, size))
    writing = tuple(weight for weight, outputs in weights if outputs == size)
    if writing:
        return writing
    if weights:
        weight, outputs = weights[0]
        raise _unsupported(weight.module, f"it gives {outputs} features, and the hidden size is {size}")
    kinds = ", ".join(sorted({type(child).__name__ for child in module.modules()} - {type(module).__name__}))
    problem = f"no linear map that ends it is recognised ({type(module).__name__} with {kinds})"
    raise _unsupported(f"{prefix}{block}", problem)


def _check_alone(layer: nn.Module, block: str, layer_name: str, component: str, size: int) -> None:
    """Raises InputError if another child of the layer gives a part of the output that would be edited."""
    if component != "mlp":
        return
    for name, child in layer.named_children():
        kind = type(child).__name__.lower()
        if name == block.partition(".")[0] or "attention" in kind or "norm" in kind:
            continue
        for weight, outputs in _named_weights(child, f"{layer_name}.{name}", component, size):
            if outputs == size:
                raise _unsupported(layer_name, f"its MLP is the sum of two modules, {block} and {weight.module}")


def _named_weights(
    module: nn.Module, module_name: str, component: str, size: int
) -> Iterator[tuple[ProjectionWeight, int]]:
    """Every weight in a block that has the name of an output map, with the number of its outputs.

    Raises:
        InputError: a module of such a name is not a linear map.
    """
    wanted = OUTPUT_MAPS[component]
    for name, child in module.named_modules():
        full_name = f"{module_name}.{name}" if name else module_name
        weight = getattr(child, "weight", None)
        if any(full_name.endswith(f".{ending}") for ending in wanted):
            if isinstance(weight, Tensor) and weight.ndim > 2:
                yield _experts_weight(module, module_name, name, "weight", size)
            elif _is_linear(child) or weight is not None:
                yield linear_weight(full_name, child)
        for leaf, parameter in child.named_parameters(recurse=False):
            if leaf in wanted and parameter.ndim > 1:
                yield _experts_weight(module, module_name, name, leaf, size)


def _experts_weight(
    block: nn.Module, block_name: str, holder_name: str, leaf: str, size: int
) -> tuple[ProjectionWeight, int]:
    """The weights of all experts in one tensor, (experts, d, m), (experts, m, d) or (experts m, d), with their bias."""
    holder = block.get_submodule(holder_name)
    parameter = holder.get_parameter(leaf)
    rows, columns = parameter.shape[-2:]
    transposed = columns == size and (rows != size or _is_transposed(holder, size))
    prefix = f"{holder_name}." if holder_name else ""
    parent = f"{holder_name.rpartition('.')[0]}.".lstrip(".")
    modules = dict(block.named_parameters())
    bias = next((name for name in (f"{prefix}{leaf}_bias", f"{prefix}bias", f"{parent}bias") if name in modules), None)
    weight = ProjectionWeight(
        name=f"{block_name}.{prefix}{leaf}",
        output_dim=-1 if transposed else -2,
        bias=bias and f"{block_name}.{bias}",
        experts=True,
        says_transposed=getattr(holder, "is_transposed", False) is True,
    )
    return weight, columns if transposed else rows


def _is_transposed(holder: nn.Module, size: int) -> bool:
    """Whether inputs come before outputs in square output weights of experts, whose shape does not tell it."""
    if isinstance(said := getattr(holder, "is_transposed", None), bool):
        return said
    return any(parameter.ndim > 1 and parameter.shape[-2] == size for _, parameter in holder.named_parameters())


def _is_linear(module: nn.Module) -> bool:
    """Whether the module is a linear map of PyTorch's layout. Its class is not asked, which differs if quantized."""
    return all(isinstance(getattr(module, name, None), int) for name in ("in_features", "out_features"))


def linear_weight(name: str, module: nn.Module) -> tuple[ProjectionWeight, int]:
    """The weight of a linear map, and the number of its outputs.

    Args:
        name: the name of the module in its model.
        module: the module.

    Raises:
        InputError: it is not a linear map of a known layout.
    """
    if _is_linear(module):
        output_dim, outputs = -2, int(module.out_features)  # type: ignore[arg-type]
    elif type(module).__name__ == "Conv1D":  # GPT-2's transposed linear map, from transformers.pytorch_utils
        weight = module.weight
        assert isinstance(weight, Tensor)
        output_dim, outputs = -1, weight.shape[1]
    else:
        raise _unsupported(name, f"it is of class {type(module).__name__}, which is not a known linear map")
    bias = f"{name}.bias" if getattr(module, "bias", None) is not None else None
    return ProjectionWeight(f"{name}.weight", output_dim, bias), outputs


def shared_parameters(model: nn.Module) -> dict[str, str]:
    """The names of parameters that share their tensor with another one, each with the name of that other one.

    Args:
        model: the model, on any device (`meta` included).
    """
    first: dict[int, str] = {}
    shared: dict[str, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        other = first.setdefault(id(parameter), name)
        if other != name:
            shared[name], shared[other] = other, name
    return shared
