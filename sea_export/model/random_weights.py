"""A model's skeleton with random weights that take next to no memory, so that it runs at its real size."""

from __future__ import annotations

import copy
import re
import zlib
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["with_random_weights"]


# How far from one another the rows of a weight begin in the random numbers: they overlap, and no two are equal.
_ROW_STRIDE = 3


_LARGEST_OFFSET = 1009


def with_random_weights(model: PreTrainedModel) -> PreTrainedModel:
    """The skeleton as a model that runs. Weights whose names differ in numbers only have the same values."""
    runnable = copy.deepcopy(model)
    numbers: dict[int, Tensor] = {}
    for module_name, module in runnable.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            view = _random_view(f"{module_name}.{name}", parameter, numbers)
            setattr(module, name, nn.Parameter(view, requires_grad=False))
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, _random_view(f"{module_name}.{name}", buffer, numbers))
    if hasattr(runnable, "set_experts_implementation"):
        # One expert after the other: the fast ways need the weights of all in full.
        runnable.set_experts_implementation("eager")
    return runnable.eval()


def _random_view(name: str, tensor: Tensor, numbers: dict[int, Tensor]) -> Tensor:
    """Random float32 of a shape as a view of a few numbers; whole numbers and truth values are 1."""
    if not tensor.is_floating_point():
        return torch.ones((), dtype=tensor.dtype).expand(tensor.shape)
    width = tensor.shape[-1] if tensor.ndim > 1 else 1
    rows = tensor.shape[-2] if tensor.ndim > 1 else 1
    length = (rows - 1) * _ROW_STRIDE + (tensor.shape[-1] if tensor.ndim else 1) + _LARGEST_OFFSET
    if width not in numbers or len(numbers[width]) < length:
        generator = torch.Generator().manual_seed(width)
        numbers[width] = torch.randn(length, generator=generator) * width**-0.5
    offset = zlib.crc32(_numberless(name).encode()) % _LARGEST_OFFSET
    strides = (0,) * (tensor.ndim - 2) + (_ROW_STRIDE, 1)[max(0, 2 - tensor.ndim) :]
    return numbers[width][offset:].as_strided(tensor.shape, strides)


def _numberless(name: str) -> str:
    return re.sub(r"\d+", "#", name)
