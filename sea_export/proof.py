"""The proof of a fold: a module with folded weights gives the edit of its own output, on random weights and inputs.

So a wrong guess about an architecture never becomes a wrong checkpoint.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from sea_export.architecture import Writer
from sea_export.errors import SeaExportError
from sea_export.fold import fold_parameters
from sea_export.layer_edit import LayerEdit

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["prove_fold"]

_PROOF_TOKENS = 5
_PROOF_TOLERANCE = 1e-4


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
