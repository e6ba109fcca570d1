"""The numerical check of a fold: does a module with folded weights give the edit of its own output?

It is made on random weights and inputs before anything is written, so that a wrong guess about an architecture never
becomes a wrong checkpoint.

The model runs at its real size and with its real classes, up to the module that is checked. Its random weights need
almost no memory, because they are overlapping views of a few random numbers. Only one folded weight at a time is in
memory in full, and only one expert of it where there are many.
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
from sea_export.errors import InputError, SeaExportError, first_line
from sea_export.model.architecture import OutputProjection, decoder_layers
from sea_export.model.constant_place import NoPlaceForConstantError
from sea_export.model.random_weights import with_random_weights, without_numbers

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["check_fold", "example_inputs", "random_edit", "run_module"]

_CHECKED_TOKENS = 5
_TOLERANCE = 1e-4


def check_fold(model: PreTrainedModel, projections: Sequence[OutputProjection], *, needs_bias: bool = False) -> None:
    """Checks numerically that folding the weights of output projections edits the outputs of their modules.

    Modules of equal structure are checked once, in the first layer that has one of them.

    Args:
        model: the model's `skeleton`, which stays as it is.
        projections: what `find_output_projections` found in it.
        needs_bias: whether the edit adds a constant (`center="affine"`). Then the constant is checked too.

    Raises:
        InputError: the constant changes on its way to the output, because it is scaled or counted several times, or the
            weights cannot have a bias that holds it; or the model does not run with random weights.
        SeaExportError: a module with folded weights does not give the edit of its own output. The message names the
            module.
    """
    runnable: PreTrainedModel | None = None
    checked = set()
    for projection in projections:
        structure = _structure(model, projection.module_name, projection)
        if structure not in checked:
            runnable = runnable or with_random_weights(model)
            _check_projection(runnable, projection, needs_bias=needs_bias)
            checked.add(structure)


def _structure(model: nn.Module, module_name: str, projection: OutputProjection) -> tuple[object, ...]:
    """The same for modules that differ only in the values of their weights."""
    module = model.get_submodule(module_name)
    shapes = tuple((name, tuple(parameter.shape)) for name, parameter in module.named_parameters())
    return (projection.target.component, type(module), shapes)


def _first_like(model: PreTrainedModel, projection: OutputProjection) -> OutputProjection:
    """The output projection of equal structure in the first layer that has one, so that little of the model runs."""
    if not projection.target.in_decoder:
        return projection
    layers_name, layers = decoder_layers(model)
    own = f"{layers_name}.{projection.target.layer}."
    for index, layer in enumerate(layers[: projection.target.layer]):
        other = f"{layers_name}.{index}."
        names = {name for name, _ in layer.named_modules(prefix=other[:-1])}
        module_name = projection.module_name.replace(own, other, 1)
        if module_name in names and _structure(model, module_name, projection) == _structure(
            model, projection.module_name, projection
        ):
            weights = tuple(
                replace(
                    weight,
                    name=weight.name.replace(own, other, 1),
                    bias=weight.bias and weight.bias.replace(own, other, 1),
                )
                for weight in projection.weights
            )
            return replace(projection, module_name=module_name, weights=weights)
    return projection


@torch.inference_mode()
def _check_projection(model: PreTrainedModel, projection: OutputProjection, *, needs_bias: bool) -> None:
    """Checks one output projection. Messages name it, and not the one of equal structure that runs instead."""
    like = _first_like(model, projection)
    module = model.get_submodule(like.module_name)
    arguments, keywords = example_inputs(model, module)
    if needs_bias:
        for weight in projection.weights:
            if weight.bias_name is None:
                raise NoPlaceForConstantError(
                    weight.name, "it has no bias that could hold the constant of an affine edit"
                )
    output = run_module(module, arguments, keywords)
    generator = torch.Generator().manual_seed(0)
    linear = random_edit(projection.size, generator)
    for edit in (linear, replace(linear, shift=torch.randn(projection.size, generator=generator)))[: 1 + needs_bias]:
        expected = edit.apply(output)
        with with_parameters(model, _folded(model, like, edit)):
            actual = run_module(module, arguments, keywords)
        error = float((actual - expected).norm() / expected.norm())
        if error <= _TOLERANCE:
            continue
        names = ", ".join(weight.name for weight in projection.weights)
        if edit is not linear:
            raise NoPlaceForConstantError(
                projection.module_name,
                f"the constant of an affine edit does not go through {names} to its output unchanged (relative error "
                f"{error:.1e})",
            )
        raise SeaExportError(
            f"{projection.module_name}: folding {names} does not edit its output (relative error {error:.1e}), so this "
            "architecture cannot be merged. Nothing was written; choose --format custom-code."
        )


def _folded(model: PreTrainedModel, projection: OutputProjection, edit: LayerEdit) -> dict[str, Tensor]:
    """The folded parameters by name. Experts of equal values are folded once, and share the folded values."""
    first: dict[str, str] = {}
    for weight in projection.weights:
        first.setdefault(without_numbers(weight.name), weight.name)
    distinct = tuple(weight for weight in projection.weights if weight.name in first.values())
    parameters = {name: _without_repetition(parameter) for name, parameter in model.named_parameters()}
    values = fold_parameters(replace(projection, weights=distinct), [edit], parameters)
    by_name = {without_numbers(name): value for name, value in values.items()}
    folded = {}
    for weight in projection.weights:
        folded[weight.name] = by_name[without_numbers(weight.name)].expand(model.get_parameter(weight.name).shape)
        if weight.bias_name is not None and (bias := by_name.get(without_numbers(weight.bias_name))) is not None:
            folded[weight.bias_name] = bias
    return folded


def _without_repetition(tensor: Tensor) -> Tensor:
    """(1, d, m) of a stack (experts, d, m) that repeats one weight; other tensors as they are."""
    for dim, stride in enumerate(tensor.stride()):
        if stride == 0:
            tensor = tensor.narrow(dim, 0, 1)
    return tensor


def random_edit(size: int, generator: torch.Generator) -> LayerEdit:
    """A linear edit for numerical checks: with random directions and row scales, far from the identity.

    Args:
        size: the hidden size d.
        generator: where the random numbers come from.
    """
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


def example_inputs(model: PreTrainedModel, module: nn.Module) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The positional and keyword arguments with which a model calls one of its modules.

    Args:
        model: what `with_random_weights` gave.
        module: a module of it.

    Raises:
        InputError: the model does not run with random weights.
        SeaExportError: it does not call the module.
    """
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
    except Exception as error:  # the code of any architecture can fail in any way on random weights
        raise _not_running(model, error) from error
    finally:
        handle.remove()
    raise SeaExportError(
        f"{type(model).__name__}: it does not run one of its edited modules, so no fold into it can be checked, and "
        "this architecture cannot be merged. Choose --format custom-code."
    )


def _not_running(module: nn.Module, error: Exception) -> InputError:
    return InputError(
        f"{type(module).__name__}: it does not run with random weights ({first_line(error)}), so no fold into it can "
        "be checked, and this architecture cannot be merged. Choose --format custom-code."
    )


def run_module(module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Tensor:
    """The first output of a module.

    Args:
        module: the module.
        arguments: what `example_inputs` gave. The module gets copies of them, because it may change them.
        keywords: the same.

    Raises:
        InputError: it does not run with random weights.
    """
    try:
        output = module(*copy.deepcopy(arguments), **copy.deepcopy(keywords))
    except Exception as error:  # as above
        raise _not_running(module, error) from error
    return output[0] if isinstance(output, (tuple, list)) else output
