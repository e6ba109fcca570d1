"""Computing in another dtype than the weights are stored in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from sea_export.model.compute_dtype import float32_is_faster
from sea_export.model.memory import unpooled_tensor

__all__ = ["in_float32", "products_in_float32"]

_PRODUCTS = frozenset(
    (
        torch.ops.aten.linear.default,
        torch.ops.aten.matmul.default,
        torch.ops.aten.mm.default,
        torch.ops.aten.addmm.default,
        torch.ops.aten.bmm.default,
        torch.ops.aten.baddbmm.default,
    )
)


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


def products_in_float32(dtype: torch.dtype) -> AbstractContextManager[object]:
    """A context in which products of matrices of a dtype are computed in float32, and rounded to the dtype once.

    That is what a processor does that has native products of half precision. Others are many times slower at them, and
    only for these there is a difference.

    Args:
        dtype: the dtype of the model.
    """
    slow = dtype in (torch.bfloat16, torch.float16) and float32_is_faster(dtype)
    return _ProductsInFloat32(dtype) if slow else nullcontext()


class _ProductsInFloat32(TorchDispatchMode):
    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self._dtype = dtype

    def __torch_dispatch__(self, func: Any, types: object, args: Any = (), kwargs: Any = None) -> Any:
        first = args[0] if args else None
        if (
            func in _PRODUCTS
            and isinstance(first, Tensor)
            and first.dtype == self._dtype
            and first.device.type == "cpu"
        ):
            wide = (one.float() if isinstance(one, Tensor) else one for one in args)
            return func(*wide, **(kwargs or {})).to(self._dtype)
        return func(*args, **(kwargs or {}))
