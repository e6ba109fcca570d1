"""Where a model writes into its residual stream: the edited modules and the parameters of their outputs.

Layers, MLPs and attention blocks are found by structure, with short tables of the names in use. Whatever is found
can be proved: `prove_fold` runs a module with folded weights on random inputs and compares with the edit of its
own output, so that a wrong guess never becomes a wrong checkpoint.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from sea_export.edit import COMPONENTS, LayerEdit, Target
from sea_export.errors import InputError, SeaExportError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

__all__ = [
    "Writer",
    "WriterWeight",
    "bias_switch",
    "decoder_layers",
    "find_writers",
    "fold_parameters",
    "hidden_size",
    "prove_fold",
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

_PROOF_TOKENS = 5
_PROOF_TOLERANCE = 1e-4


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
            if name.rsplit(".", 1)[-1] == wanted and isinstance(getattr(child, "weight", None), Tensor)
        ]
        if weights:
            return tuple(weights)
    kinds = ", ".join(sorted({type(child).__name__ for child in module.modules()} - {type(module).__name__}))
    raise InputError(
        f"no linear map that writes the output of {module_name} ({type(module).__name__} with {kinds}) is "
        "recognised: this architecture is not supported"
    )


def _linear_weight(name: str, module: nn.Module, size: int) -> WriterWeight:
    if isinstance(module, nn.Linear):
        output_dim, outputs = 0, module.weight.shape[0]
    elif type(module).__name__ == "Conv1D":  # GPT-2's transposed linear map, of transformers.pytorch_utils
        weight = module.weight
        assert isinstance(weight, Tensor)
        output_dim, outputs = 1, weight.shape[1]
    else:
        raise InputError(
            f"{name} is a {type(module).__name__}, whose storage cannot be folded: load the model without quantization"
        )
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


def fold_parameters(writer: Writer, edits: Sequence[LayerEdit], parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The writer's parameters with the edits folded in: W' = M' W and b' = M' b + (I - M') μ.

    Args:
        writer: which parameters to fold and how they are laid out.
        edits: the layer edits in the order of their application.
        parameters: by name, in any floating dtype: the arithmetic is one step wider (float32 for half
            precision, float64 for float32), rounded once.

    Returns:
        The folded parameters by name. A bias appears that was not there where an edit needs one.
    """
    folded: dict[str, Tensor] = {}
    for weight in writer.weights:
        stored = parameters[weight.name]
        folded[weight.name] = fold_tensor(stored, edits, weight.output_dim)
        bias = fold_bias(parameters[weight.bias] if weight.bias else None, edits, stored.dtype)
        if bias is not None:
            folded[weight.bias or weight.name.removesuffix("weight") + "bias"] = bias
    return folded


def fold_tensor(stored: Tensor, edits: Sequence[LayerEdit], output_dim: int) -> Tensor:
    """A stored weight (d, m) or (m, d) with the edits folded in, a block at a time to bound the wider copy."""
    folded = torch.empty_like(stored)
    blocks = max(1, stored.numel() // _FOLD_BLOCK)
    for source, destination in zip(
        stored.movedim(output_dim, 0).chunk(blocks, dim=1),
        folded.movedim(output_dim, 0).chunk(blocks, dim=1),
        strict=True,
    ):
        block = source.to(_wider(stored.dtype))
        for edit in edits:
            block = edit.fold_weight(block)
        destination.copy_(block)
    return folded


def fold_bias(stored: Tensor | None, edits: Sequence[LayerEdit], dtype: torch.dtype) -> Tensor | None:
    """A stored bias (d,), or none, with the edits folded in; None where there is still no constant."""
    bias = None if stored is None else stored.to(_wider(dtype))
    for edit in edits:
        bias = edit.fold_bias(bias)
        bias = None if bias is None else bias.to(_wider(dtype))
    return None if bias is None else bias.to(dtype)


# Elements of a weight that are widened at a time: 64 MB of float32.
_FOLD_BLOCK = 16 * 2**20


def _wider(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype in (torch.float32, torch.float64) else torch.float32


def skeleton(config: PretrainedConfig, *, trust_remote_code: bool = False) -> PreTrainedModel:
    """The model of a config without its weights (on the `meta` device): names and structure only."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        # Eager attention, because the others look at mask values, which do not exist on this device.
        model = AutoModelForCausalLM.from_config(
            copy.deepcopy(config), trust_remote_code=trust_remote_code, attn_implementation="eager"
        )
    return model.eval()


def prove_fold(model: PreTrainedModel, writers: Sequence[Writer]) -> None:
    """Proves on random weights and inputs that folding a writer's parameters edits its module's output.

    Modules of equal structure are proved once. Only one module at a time takes memory.

    Args:
        model: the model's `skeleton`.
        writers: what `find_writers` found in it.

    Raises:
        SeaExportError: the module with folded weights does not give the edit of its own output: the layer and
            module are named.
    """
    proved = set()
    for writer in writers:
        module = model.get_submodule(writer.module_name)
        shapes = tuple((name, tuple(parameter.shape)) for name, parameter in module.named_parameters())
        structure = (writer.target.component, type(module), shapes)
        if structure not in proved:
            _prove_writer(model, module, writer)
            proved.add(structure)


@torch.inference_mode()
def _prove_writer(model: PreTrainedModel, module: nn.Module, writer: Writer) -> None:
    generator = torch.Generator().manual_seed(0)
    arguments, keywords = _example_inputs(model, module, generator)
    module = copy.deepcopy(module).to_empty(device="cpu").float().eval()
    parameters = dict(module.named_parameters())
    for tensor in (*parameters.values(), *module.buffers()):
        if tensor.is_floating_point():
            width = tensor.shape[-1] if tensor.ndim else 1
            tensor.normal_(std=width**-0.5, generator=generator)
        else:
            tensor.fill_(1)
    edit = _random_edit(writer.size, generator)
    prefix = f"{writer.module_name}."
    named = {f"{prefix}{name}": parameter for name, parameter in parameters.items()}
    expected = edit.apply(_first(module(*arguments, **keywords)))
    folded = {name.removeprefix(prefix): tensor for name, tensor in fold_parameters(writer, [edit], named).items()}
    actual = _first(functional_call(module, folded, arguments, keywords))
    error = float((actual - expected).norm() / expected.norm())
    if not error <= _PROOF_TOLERANCE:
        raise SeaExportError(
            f"folding {', '.join(weight.name for weight in writer.weights)} does not edit the output of "
            f"{writer.module_name} (relative error {error:.1e}): nothing was written, "
            "and this architecture cannot be merged"
        )


def _random_edit(size: int, generator: torch.Generator) -> LayerEdit:
    directions = torch.linalg.qr(torch.randn(size, min(size, 4), generator=generator)).Q
    half = directions.shape[1] // 2
    return LayerEdit(
        positive=directions[:, :half],
        negative=directions[:, half:],
        identity=1.0,
        strength=1.0,
        scale=0.5 + torch.rand(size, generator=generator),
        shift=None,
        reader=None,
        positive_values=torch.ones(half),
        negative_values=torch.ones(half),
        relative_change=1.0,
        signature=0.0,
        reader_error=None,
    )


class _ArgumentsRecorded(Exception):
    """Ends a forward pass once the wanted module's arguments are known."""


def _example_inputs(
    model: PreTrainedModel, module: nn.Module, generator: torch.Generator
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Random arguments of the shapes with which the model calls the module."""
    recorded: dict[str, Any] = {}

    def record(_: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        recorded.update(arguments=arguments, keywords=keywords)
        raise _ArgumentsRecorded

    handle = module.register_forward_pre_hook(record, with_kwargs=True)
    try:
        model(
            input_ids=torch.zeros(1, _PROOF_TOKENS, dtype=torch.long, device="meta"),
            attention_mask=torch.ones(1, _PROOF_TOKENS, dtype=torch.long, device="meta"),
            use_cache=False,
        )
    except _ArgumentsRecorded:
        pass
    except (RuntimeError, NotImplementedError) as error:  # what runs before it needs values, not shapes alone
        raise SeaExportError(
            f"{type(model).__name__} does not run without its weights ({error}), so that no fold into it can be "
            "proved: this architecture cannot be merged"
        ) from error
    finally:
        handle.remove()
    return _materialize(recorded["arguments"], generator), _materialize(recorded["keywords"], generator)


def _materialize(value: Any, generator: torch.Generator) -> Any:
    if isinstance(value, Tensor):
        if value.is_floating_point():
            return torch.randn(value.shape, generator=generator)
        return torch.ones(value.shape, dtype=value.dtype)
    if isinstance(value, (tuple, list)):
        return type(value)(_materialize(item, generator) for item in value)
    if isinstance(value, dict):
        return {name: _materialize(item, generator) for name, item in value.items()}
    return value


def _first(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


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
