"""Computing in another dtype than the weights are stored in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from sea_export.model.memory import unpooled_tensor

__all__ = ["in_float32"]


@contextmanager
def in_float32(module: nn.Module) -> Iterator[None]:
    """A context in which all parameters and buffers of a module that are in memory are in float32.

    Afterwards they are rounded to their dtypes, which gives the same values as before.
    """
    narrow = [
        tensor
        for tensor in (*module.parameters(), *module.buffers())
        if not tensor.is_meta and tensor.is_floating_point() and tensor.itemsize < 4
    ]
    dtypes = [tensor.dtype for tensor in narrow]
    for tensor in narrow:
        tensor.data = unpooled_tensor(tensor.shape, torch.float32).to(tensor.device).copy_(tensor.data)
    try:
        yield
    finally:
        for tensor, dtype in zip(narrow, dtypes, strict=True):
            tensor.data = tensor.data.to(dtype)
