"""How far the weights are from one another that two checkpoints hold in the same quantized storage."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from sea_export.model.block_scaled import BlockScaled, block_scaled_matrices
from sea_export.model.checkpoint import Checkpoint
from sea_export.model.quantization_methods import REQUANTIZABLE
from sea_export.model.quantized_storage import QuantizedWeight, is_requantizable, stored_quantized

__all__ = ["weight_differences"]

_ROWS_AT_ONCE = 1 << 19
"""About how many weights are dequantized at a time."""


def weight_differences(
    first: Checkpoint, second: Checkpoint, method: str, changed: Iterable[str]
) -> dict[str, tuple[float, float]]:
    """The differences of weights whose stored numbers differ.

    Args:
        first: the checkpoint a.
        second: the checkpoint b.
        method: how both are quantized.
        changed: the stored tensors that differ, and have the same dtype and shape in both.

    Returns:
        The stored name of the numbers of a weight -> max |b - a| and ‖b - a‖ / ‖a‖, of the weights that they mean. None
        for weights whose factors are of another storage.

    Raises:
        SeaExportError: a file became shorter while it was read.
    """
    if method not in REQUANTIZABLE:
        return {}
    names, other = set(changed), stored_quantized(second, method)
    found = {}
    for name, weight in stored_quantized(first, method).items():
        if weight.values not in names or other.get(name) != weight:
            continue
        if all(is_requantizable(weight, one) for one in (first, second)):
            found[weight.values] = _difference(weight, first, second)
    return found


def _difference(weight: QuantizedWeight, first: Checkpoint, second: Checkpoint) -> tuple[float, float]:
    largest, squares = torch.zeros((), dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    for a, b in zip(_matrices(weight, first), _matrices(weight, second), strict=True):
        rows, columns = a.shape
        height = a.block_rows * max(1, _ROWS_AT_ONCE // columns // a.block_rows)
        for start in range(0, rows, height):
            part = slice(start, min(start + height, rows))
            before = a[part]
            distance = b[part].sub_(before)
            largest = torch.maximum(largest, distance.abs().max())
            squares += torch.stack([distance.square().sum(), before.square().sum()])
    relative = torch.sqrt(squares[0] / squares[1]) if squares[0] != 0 else squares[0]
    return float(largest), float(relative)


def _matrices(weight: QuantizedWeight, checkpoint: Checkpoint) -> Iterable[BlockScaled]:
    return block_scaled_matrices(checkpoint.read(weight.values), checkpoint.read(weight.scales))
