"""Linear maps of a model by their names: which there are, how their weights are laid out, and who shares them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from torch import nn

from sea_export.errors import InputError
from sea_export.model.architecture import ProjectionWeight, linear_weight, shared_parameters

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["find_linear_weights", "linear_module", "linear_shape"]


def linear_module(model: nn.Module, name: str) -> nn.Module:
    """A linear map of a model.

    Args:
        model: the model, on any device (`meta` included).
        name: the name of the linear map in it.

    Raises:
        InputError: there is no such module, or it is no linear map.
    """
    try:
        module = model.get_submodule(name)
    except AttributeError as error:
        raise InputError(
            f"{name}: {type(model).__name__} has no module of that name, whose weight the edit changes. Give the model "
            "that the edit was made for."
        ) from error
    linear_weight(name, module)  # raises for another kind of module
    return module


def linear_shape(module: nn.Module) -> tuple[int, int]:
    """The numbers of outputs and of inputs of a linear map, whatever the layout of its weight.

    Args:
        module: what `linear_module` gave.
    """
    if isinstance(inputs := getattr(module, "in_features", None), int):
        return int(module.out_features), inputs  # type: ignore[arg-type]
    inputs, outputs = module.get_parameter("weight").shape  # of a transposed linear map
    return outputs, inputs


def find_linear_weights(model: PreTrainedModel, names: Iterable[str]) -> tuple[ProjectionWeight, ...]:
    """The weights of linear maps, in their order. None of them is shared with another module.

    Args:
        model: the model, on any device (`meta` included).
        names: the names of the linear maps in it.

    Raises:
        InputError: one of them does not exist, is no linear map, or shares its weight.
    """
    shared = shared_parameters(model)
    found = []
    for name in names:
        weight, _ = linear_weight(name, linear_module(model, name))
        if weight.name in shared:
            raise InputError(
                f"{name}: it shares its weight with {shared[weight.name].rpartition('.')[0]}, and a change of one "
                "would change both. Leave it out of the edit."
            )
        found.append(weight)
    return tuple(found)
