"""Whether llama.cpp can add the constant of an edit: to the residual stream, after a layer from 1 on.

A control vector is added to what a layer gives. An edit adds its constant to what the MLP or the attention gives. Both
are the same only if nothing but sums is between the two: no norm, no factor, and no other block that reads the sum.
That is tried out on random weights, so that no table of architectures has to be right about it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

from sea_export.errors import InputError
from sea_export.export.fold_check import example_inputs, run_module
from sea_export.export.gguf_adapter.applied import added_to_output
from sea_export.model.architecture import OutputProjection, decoder_layers
from sea_export.model.random_weights import with_random_weights

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["check_constants"]

_TOLERANCE = 1e-4


def check_constants(model: PreTrainedModel, projections: Sequence[OutputProjection]) -> None:
    """Checks that control vectors can hold the constants that an edit adds to outputs.

    Layers of equal structure are checked once, in the first of them.

    Args:
        model: the model's skeleton, which stays as it is.
        projections: where the constants are added.

    Raises:
        InputError: they cannot. The message names the layer or the module.
    """
    for projection in projections:
        if projection.target.layer == 0:
            raise InputError(
                f"{projection.target}: llama.cpp adds control vectors to layers from 1 on, and the edit needs a "
                f"constant in layer 0. Choose {_ways_out(projection)}."
            )
    list_name, layers = decoder_layers(model)
    structures = [_structure(layer) for layer in layers]
    runnable: PreTrainedModel | None = None
    checked = set()
    for projection in projections:
        number = projection.target.layer
        first = structures.index(structures[number])
        name = projection.module_name.replace(f"{list_name}.{number}.", f"{list_name}.{first}.", 1)
        if name in checked:
            continue
        checked.add(name)
        runnable = runnable or with_random_weights(model)
        error = _error(runnable, decoder_layers(runnable)[1][first], runnable.get_submodule(name), projection.size)
        if not error <= _TOLERANCE:
            raise InputError(
                f"{projection.module_name}: what it gives is read by another block or changed by a norm or a factor on "
                f"its way out of layer {number} (relative error {error:.1e}), so that no control vector of llama.cpp "
                f"can hold the constant of the edit. Choose {_ways_out(projection)}."
            )


def _ways_out(projection: OutputProjection) -> str:
    """What to choose where a constant has no place. A bias of the base makes one of every edit."""
    has_bias = any(weight.bias is not None for weight in projection.weights)
    return f"{'' if has_bias else '--center linear, '}other --layers or --target, or another --format"


def _structure(layer: nn.Module) -> tuple[object, ...]:
    """The same for layers that differ only in the values of their weights."""
    kinds = tuple((name, type(module)) for name, module in layer.named_modules())
    return kinds, tuple((name, tuple(parameter.shape)) for name, parameter in layer.named_parameters())


@torch.inference_mode()
def _error(model: PreTrainedModel, layer: nn.Module, module: nn.Module, size: int) -> float:
    """How far a layer's output is from moving as much as that of a module in it, relative to the move."""
    generator = torch.Generator().manual_seed(0)
    for owner in layer.modules():
        for name, parameter in owner.named_parameters(recurse=False):
            if parameter.ndim == 1:  # of the usual size: small norms would hide that a block reads the sum
                values = torch.randn(parameter.shape, generator=generator)
                setattr(owner, name, nn.Parameter(values, requires_grad=False))
    arguments, keywords = example_inputs(model, layer)
    constant = torch.randn(size, generator=generator)
    plain = run_module(layer, arguments, keywords)
    with added_to_output(module, constant):
        moved = run_module(layer, arguments, keywords)
    return float((moved - plain - constant).norm() / constant.expand_as(plain).norm())
