"""Whether what a block adds reaches the residual stream after its layer as it is.

A vector that is added to the residual stream after a layer, and a vector that is added to what the MLP or the attention
of that layer gives, are the same only if nothing but sums is between the two: no norm, no factor, and no other block
that reads the sum. That is tried out on random weights, so that no table of architectures has to be right about it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sea_export.export.fold_check import example_inputs, run_module
from sea_export.model.architecture import OutputProjection, decoder_layers
from sea_export.model.random_weights import with_random_weights

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["LARGEST_SUM_ERROR", "added_to_output", "layer_structure", "sum_errors", "with_usual_vectors"]

LARGEST_SUM_ERROR = 1e-4
"""Up to this relative error, what a layer gives is taken to move as much as what a block in it gives."""


@contextmanager
def added_to_output(module: nn.Module, vector: Tensor) -> Iterator[None]:
    """A context in which a vector is added to the output of a module, or to the first of its outputs.

    Args:
        module: the module.
        vector: (d,)
    """

    def add(_: nn.Module, inputs: object, output: Any) -> Any:
        several = isinstance(output, (tuple, list))
        first = output[0] if several else output
        moved = first + vector.to(first)
        return type(output)((moved, *output[1:])) if several else moved

    handle = module.register_forward_hook(add, prepend=True)
    try:
        yield
    finally:
        handle.remove()


def sum_errors(
    model: PreTrainedModel, projections: Sequence[OutputProjection]
) -> Iterator[tuple[OutputProjection, float]]:
    """How far each layer's output is from moving as much as that of a block in it, relative to the move.

    Layers of equal structure are tried once, in the first of them.

    Args:
        model: the model's skeleton, which stays as it is.
        projections: the blocks, of decoder layers.
    """
    list_name, layers = decoder_layers(model)
    structures = [layer_structure(layer) for layer in layers]
    runnable: PreTrainedModel | None = None
    tried = set()
    for projection in projections:
        number = projection.target.layer
        first = structures.index(structures[number])
        name = projection.module_name.replace(f"{list_name}.{number}.", f"{list_name}.{first}.", 1)
        if name not in tried:
            tried.add(name)
            runnable = runnable or with_random_weights(model)
            layer, module = decoder_layers(runnable)[1][first], runnable.get_submodule(name)
            yield projection, _error(runnable, layer, module, projection.size)


def layer_structure(layer: nn.Module) -> tuple[object, ...]:
    """The same for layers that differ only in the values of their weights.

    Args:
        layer: a decoder layer.
    """
    kinds = tuple((name, type(module)) for name, module in layer.named_modules())
    return kinds, tuple((name, tuple(parameter.shape)) for name, parameter in layer.named_parameters())


def with_usual_vectors(module: nn.Module, generator: torch.Generator) -> None:
    """Gives all vectors in a module, such as the weights of norms, random values of the usual size.

    Small norms would hide that a block reads a sum.

    Args:
        module: a module of what `with_random_weights` gave.
        generator: where the random numbers come from.
    """
    for owner in module.modules():
        for name, parameter in owner.named_parameters(recurse=False):
            if parameter.ndim == 1:
                values = torch.randn(parameter.shape, generator=generator)
                setattr(owner, name, nn.Parameter(values, requires_grad=False))


@torch.inference_mode()
def _error(model: PreTrainedModel, layer: nn.Module, module: nn.Module, size: int) -> float:
    generator = torch.Generator().manual_seed(0)
    with_usual_vectors(layer, generator)
    arguments, keywords = example_inputs(model, layer)
    constant = torch.randn(size, generator=generator)
    plain = run_module(layer, arguments, keywords)
    with added_to_output(module, constant):
        moved = run_module(layer, arguments, keywords)
    return float((moved - plain - constant).norm() / constant.expand_as(plain).norm())
