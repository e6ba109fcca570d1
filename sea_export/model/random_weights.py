"""A model with random weights that need almost no memory, so that it can run at its real size."""

from __future__ import annotations

import copy
import re
import zlib
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["with_random_weights", "without_numbers"]

# The distance between the starts of two rows of a weight in the random numbers. Rows overlap, and no two are equal.
_ROW_STRIDE = 3
# Weights start at an offset below this one, which depends on their names.
_LARGEST_OFFSET = 1009


def with_random_weights(model: PreTrainedModel) -> PreTrainedModel:
    """A copy of a skeleton with random weights, which can run.

    Args:
        model: the model on `meta`.

    Returns:
        The copy in float32. Weights whose names differ only in numbers (layers, experts) have the same values.
    """
    runnable = copy.deepcopy(model)
    numbers: dict[int, Tensor] = {}
    for module_name, module in runnable.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            view = _random_view(f"{module_name}.{name}", parameter, numbers)
            setattr(module, name, nn.Parameter(view, requires_grad=False))
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, _random_view(f"{module_name}.{name}", buffer, numbers))
    if hasattr(runnable, "set_experts_implementation"):
        # One expert after the other, because the faster ways need all weights in memory.
        runnable.set_experts_implementation("eager")
    return runnable.eval()


def _random_view(name: str, tensor: Tensor, numbers: dict[int, Tensor]) -> Tensor:
    """Random values of the shape of `tensor`, in float32, as a view of a few random numbers. All others are 1."""
    if not tensor.is_floating_point():
        return torch.ones((), dtype=tensor.dtype).expand(tensor.shape)
    width = tensor.shape[-1] if tensor.ndim > 1 else 1
    rows = tensor.shape[-2] if tensor.ndim > 1 else 1
    length = (rows - 1) * _ROW_STRIDE + (tensor.shape[-1] if tensor.ndim else 1) + _LARGEST_OFFSET
    if width not in numbers or len(numbers[width]) < length:
        generator = torch.Generator().manual_seed(width)
        numbers[width] = torch.randn(length, generator=generator) * width**-0.5
    offset = zlib.crc32(without_numbers(name).encode()) % _LARGEST_OFFSET
    strides = (0,) * (tensor.ndim - 2) + (_ROW_STRIDE, 1)[max(0, 2 - tensor.ndim) :]
    return numbers[width][offset:].as_strided(tensor.shape, strides)


def without_numbers(name: str) -> str:
    """The name of a parameter with `#` for each number: parameters of the same such name have the same values."""
    return re.sub(r"\d+", "#", name)
