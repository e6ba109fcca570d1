"""The proof of a fold: a module with folded weights gives the edit of its own output, on random weights and inputs.

So a wrong guess about an architecture never becomes a wrong checkpoint.

The model itself runs, at its real size and with its real classes, up to the module that is proved; but its random
weights take next to no memory, because they are overlapping views of a few random numbers. What is held in full is one
folded weight at a time, of one expert where there are many.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sea_export.edit.fold import fold_parameters, with_parameters
from sea_export.edit.layer_edit import LayerEdit
from sea_export.errors import InputError, SeaExportError
from sea_export.model.architecture import OutputProjection, decoder_layers
from sea_export.model.random_weights import with_random_weights, without_numbers

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["check_fold", "random_edit"]

_CHECKED_TOKENS = 5
_TOLERANCE = 1e-4


def check_fold(model: PreTrainedModel, writers: Sequence[OutputProjection], *, needs_bias: bool = False) -> None:
    """Proves on random weights and inputs that folding a writer's parameters edits its module's output.

    Modules of equal structure are proved once, in the first layer that has such a one.

    Args:
        model: the model's `skeleton`; it stays as it is.
        writers: what `find_output_projections` found in it.
        needs_bias: whether the edit adds a constant (`center="affine"`), which then is proved as well.

    Raises:
        InputError: the constant does not reach the output as it is, because it is scaled or counted several times on
            the way, or the writers have no room for it.
        SeaExportError: the module with folded weights does not give the edit of its own output: the layer and
            module are named.
    """
    runnable: PreTrainedModel | None = None
    proved = set()
    for writer in writers:
        structure = _structure(model, writer.module_name, writer)
        if structure not in proved:
            runnable = runnable or with_random_weights(model)
            _check_projection(runnable, _first_like(model, writer), needs_bias=needs_bias)
            proved.add(structure)


def _structure(model: nn.Module, module_name: str, writer: OutputProjection) -> tuple[object, ...]:
    """What makes two modules equal but for their values."""
    module = model.get_submodule(module_name)
    shapes = tuple((name, tuple(parameter.shape)) for name, parameter in module.named_parameters())
    return (writer.target.component, type(module), shapes)


def _first_like(model: PreTrainedModel, writer: OutputProjection) -> OutputProjection:
    """The same writer in the first layer that has one of its structure: less of the model runs until there."""
    layers_name, layers = decoder_layers(model)
    own = f"{layers_name}.{writer.target.layer}."
    for index, layer in enumerate(layers[: writer.target.layer]):
        other = f"{layers_name}.{index}."
        names = {name for name, _ in layer.named_modules(prefix=other[:-1])}
        module_name = writer.module_name.replace(own, other, 1)
        if module_name in names and _structure(model, module_name, writer) == _structure(
            model, writer.module_name, writer
        ):
            weights = tuple(
                replace(
                    weight,
                    name=weight.name.replace(own, other, 1),
                    bias=weight.bias and weight.bias.replace(own, other, 1),
                )
                for weight in writer.weights
            )
            return replace(writer, module_name=module_name, weights=weights)
    return writer


@torch.inference_mode()
def _check_projection(model: PreTrainedModel, writer: OutputProjection, *, needs_bias: bool) -> None:
    module = model.get_submodule(writer.module_name)
    arguments, keywords = _example_inputs(model, module)
    if needs_bias:
        for weight in writer.weights:
            if weight.bias_name is None:
                raise InputError(
                    f"{weight.name} has no bias that could hold the constant of an affine edit: choose --center linear"
                )
    output = _run(module, arguments, keywords)
    generator = torch.Generator().manual_seed(0)
    linear = random_edit(writer.size, generator)
    for edit in (linear, replace(linear, shift=torch.randn(writer.size, generator=generator)))[: 1 + needs_bias]:
        expected = edit.apply(output)
        with with_parameters(model, _folded(model, writer, edit)):
            actual = _run(module, arguments, keywords)
        error = float((actual - expected).norm() / expected.norm())
        if error <= _TOLERANCE:
            continue
        names = ", ".join(weight.name for weight in writer.weights)
        if edit is not linear:
            raise InputError(
                f"the constant of an affine edit does not go through {names} to the output of {writer.module_name} as "
                f"it is (relative error {error:.1e}): choose --center linear"
            )
        raise SeaExportError(
            f"folding {names} does not edit the output of {writer.module_name} (relative error {error:.1e}): nothing "
            "was written, and this architecture cannot be merged"
        )


def _folded(model: PreTrainedModel, writer: OutputProjection, edit: LayerEdit) -> dict[str, Tensor]:
    """The folded parameters. Experts of equal values are folded once: they stay views of one another."""
    first: dict[str, str] = {}
    for weight in writer.weights:
        first.setdefault(without_numbers(weight.name), weight.name)
    distinct = tuple(weight for weight in writer.weights if weight.name in first.values())
    parameters = {name: _without_repetition(parameter) for name, parameter in model.named_parameters()}
    values = fold_parameters(replace(writer, weights=distinct), [edit], parameters)
    by_name = {without_numbers(name): value for name, value in values.items()}
    folded = {}
    for weight in writer.weights:
        folded[weight.name] = by_name[without_numbers(weight.name)].expand(model.get_parameter(weight.name).shape)
        if weight.bias_name is not None and (bias := by_name.get(without_numbers(weight.bias_name))) is not None:
            folded[weight.bias_name] = bias
    return folded


def _without_repetition(tensor: Tensor) -> Tensor:
    """(1, d, m) of a stack (experts, d, m) that repeats one weight."""
    for dim, stride in enumerate(tensor.stride()):
        if stride == 0:
            tensor = tensor.narrow(dim, 0, 1)
    return tensor


def random_edit(size: int, generator: torch.Generator) -> LayerEdit:
    """A row-scaled linear edit of size d with random directions, far from the identity: what proofs fold."""
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


def _example_inputs(model: PreTrainedModel, module: nn.Module) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments with which the model calls the module."""
    recorded: dict[str, Any] = {}

    def record(_: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        recorded.update(arguments=arguments, keywords=keywords)
        raise _ArgumentsRecorded

    handle = module.register_forward_pre_hook(record, with_kwargs=True)
    tokens = torch.ones(1, _CHECKED_TOKENS, dtype=torch.long)
    try:
        model(input_ids=tokens.cumsum(dim=1), attention_mask=tokens, use_cache=False)
    except _ArgumentsRecorded:
        return recorded["arguments"], recorded["keywords"]
    except Exception as error:  # code of any architecture, which may fail in any way on random weights
        raise SeaExportError(
            f"{type(model).__name__} does not run with random weights ({error}), so that no fold into it can be "
            "proved: this architecture cannot be merged"
        ) from error
    finally:
        handle.remove()
    raise SeaExportError(f"{type(model).__name__} does not run through a module that it has: nothing can be proved")


def _run(module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Tensor:
    """The module's first output. It may change what it is given, but only a copy."""
    try:
        output = module(*copy.deepcopy(arguments), **copy.deepcopy(keywords))
    except Exception as error:  # as above
        raise SeaExportError(
            f"{type(module).__name__} does not run with random weights ({error}), so that no fold into it can be "
            "proved: this architecture cannot be merged"
        ) from error
    return output[0] if isinstance(output, (tuple, list)) else output
