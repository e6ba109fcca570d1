"""The fold: parameters that write an edited output, with the edit folded in, and the proof that this edits it.

`prove_fold` runs a module with folded weights on random inputs and compares with the edit of its own output, so that
a wrong guess about an architecture never becomes a wrong checkpoint.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from sea_export.architecture import Writer
from sea_export.errors import SeaExportError
from sea_export.layer_edit import LayerEdit
from sea_export.low_rank import low_rank_edit

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["fold_bias", "fold_parameters", "fold_tensor", "prove_fold"]

_PROOF_TOKENS = 5
_PROOF_TOLERANCE = 1e-4


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
    """A stored weight with the edits folded in, in their low-rank form: D (c W + L (R W)), a few rows at a time.

    Args:
        stored: (..., d, m) or (..., m, d), of any floating dtype: what stands before is a stack of weights (experts).
        edits: the layer edits in the order of their application.
        output_dim: the dimension that runs over the hidden size d: one of the last two.

    Returns:
        The folded weight, in the dtype and shape of the stored one.

    Raises:
        InputError: an edit is not linear.
    """
    for edit in edits:
        edit.require_foldable()
    wide = _wider(stored.dtype)
    product = low_rank_edit(edits)
    factors = _Factors(
        scale=(product.identity * product.scale).to(wide),
        left=(product.scale[:, None] * product.left).to(wide),
        right=product.right.to(wide),
    )
    folded = torch.empty_like(stored, memory_format=torch.contiguous_format)
    fold = _fold_columns if output_dim % stored.ndim == stored.ndim - 2 else _fold_rows
    for matrix, destination in zip(
        stored.reshape(-1, *stored.shape[-2:]), folded.view(-1, *stored.shape[-2:]), strict=True
    ):
        fold(matrix, destination, factors)
    return folded


@dataclass(frozen=True)
class _Factors:
    """h ↦ scale ∘ h + left (right h), in the dtype of the arithmetic."""

    scale: Tensor
    """(d,)"""
    left: Tensor
    """(d, k)"""
    right: Tensor
    """(k, d)"""


def _fold_columns(matrix: Tensor, destination: Tensor, factors: _Factors) -> None:
    """Edits the columns of (d, m). What all rows give to the k directions is summed first."""
    directions = factors.left.new_zeros(factors.right.shape[0], matrix.shape[1])
    for rows, block in _widened(matrix, factors.left.dtype):
        directions.addmm_(factors.right[:, rows], block)
    for rows, block in _widened(matrix, factors.left.dtype):
        block.mul_(factors.scale[rows, None]).addmm_(factors.left[rows], directions)
        destination[rows].copy_(block)


def _fold_rows(matrix: Tensor, destination: Tensor, factors: _Factors) -> None:
    """Edits the rows of (m, d)."""
    for rows, block in _widened(matrix, factors.left.dtype):
        directions = block @ factors.right.T
        block.mul_(factors.scale).addmm_(directions, factors.left.T)
        destination[rows].copy_(block)


def _widened(matrix: Tensor, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
    """Some rows after the other in a wider dtype, all in the same memory, because fresh memory costs time."""
    height = max(1, _FOLD_BLOCK // matrix.shape[1])
    buffer = torch.empty(min(height, matrix.shape[0]), matrix.shape[1], dtype=dtype)
    for start in range(0, matrix.shape[0], height):
        rows = slice(start, min(start + height, matrix.shape[0]))
        block = buffer[: rows.stop - start]
        yield rows, block.copy_(matrix[rows])


def fold_bias(stored: Tensor | None, edits: Sequence[LayerEdit], dtype: torch.dtype) -> Tensor | None:
    """A stored bias (d,), or none, with the edits folded in; None where there is still no constant."""
    bias = None if stored is None else stored.to(_wider(dtype))
    for edit in edits:
        bias = edit.fold_bias(bias)
        bias = None if bias is None else bias.to(_wider(dtype))
    return None if bias is None else bias.to(dtype)


# Elements of a weight that are widened at a time: 4 MB of float32, which stay in the processor's cache.
_FOLD_BLOCK = 2**20


def _wider(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype in (torch.float32, torch.float64) else torch.float32


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
