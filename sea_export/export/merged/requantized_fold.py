"""The fold of an edit into a quantized weight, in the storage of the base (`--requantize`).

The weight is dequantized, folded and quantized again a few rows at a time, so that no plain copy of it is made. It is
held by two tensors, its numbers and the factors of its blocks, and each of them is written for itself when its turn
comes: the fold is computed for both.

Rounding to few bits is coarse. Weights of the base are exactly what is stored, so that a change of less than half the
distance to the next number would be rounded away wherever the factor stays. So it is measured how much of the change is
kept, beside the error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sea_export.edit.fold import fold_ranges, fold_rows
from sea_export.edit.layer_edit import LayerEdit
from sea_export.errors import InputError
from sea_export.export.formats import StorageError
from sea_export.model.block_scaled import BlockScaled, block_scaled_matrices
from sea_export.model.checkpoint import Checkpoint
from sea_export.model.quantized_storage import QuantizedWeight

__all__ = ["RequantizedFold", "RequantizedTensors", "requantize"]


@dataclass(frozen=True)
class RequantizedTensors:
    """What was found of a requantized weight in a written checkpoint."""

    wrong: tuple[str, ...]
    """Those of its two tensors that are not what requantizing the fold gives on any processor."""
    error: StorageError
    """What its storage does to the fold."""


@dataclass(frozen=True)
class RequantizedFold:
    """The fold of linear edits into one quantized weight, or into a stack of them.

    Attributes:
        weight: where it is stored.
        base: the checkpoint of the base.
        edits: the layer edits in the order of their application.
        output_dim: the dimension of the hidden size, of the weight as a plain checkpoint would have it: -2 or -1.
    """

    weight: QuantizedWeight
    base: Checkpoint
    edits: Sequence[LayerEdit]
    output_dim: int

    def tensor_edits(self) -> Mapping[str, Callable[[Tensor], Tensor]]:
        """The edit of each of its stored tensors, by name."""
        return {self.weight.values: self._values, self.weight.scales: self._scales}

    def check(self, written: Checkpoint) -> RequantizedTensors:
        """Compares its tensors in a written checkpoint with the requantization of the fold.

        Args:
            written: the checkpoint. It stores both tensors, in the base's dtypes and shapes.
        """
        sums, values_agree, scales_agree = torch.zeros(6, dtype=torch.float64), True, True
        for matrix, other in zip(_matrices(self.weight, self.base), _matrices(self.weight, written), strict=True):
            for rows, folded, error in fold_ranges(
                matrix, self.edits, columns=self._has_columns, multiple=matrix.block_rows
            ):
                before, after = matrix.part(rows), other.part(rows)
                scales = [before.next_scales(folded, sign * error) for sign in (-1, 1)]
                scales_agree &= _between(after.factors(), *(BlockScaled(after.values, one).factors() for one in scales))
                values = [before.quantized(folded + sign * error, after.scales) for sign in (-1, 1)]
                values_agree &= _between(after.numbers(), *(one.numbers() for one in values))
                sums += _sums(before, folded, after.weights())
        rounded, of_fold, own, of_base, kept, change = sums.tolist()
        of_storage = StorageError(
            error=(rounded / of_fold) ** 0.5 if of_fold else 0.0,
            own_rounding=(own / of_base) ** 0.5 if of_base else 0.0,
            kept=kept / change if change else 1.0,
        )
        agree = {self.weight.values: values_agree, self.weight.scales: scales_agree}
        return RequantizedTensors(tuple(name for name, one in agree.items() if not one), of_storage)

    def noise(self, generator: torch.Generator) -> Tensor:
        """Random changes of the base's weight that its storage rounds away, of shape `weight.shape`, in float32.

        Args:
            generator: where the random numbers come from.
        """
        changes = [
            matrix.half_spacing().float() * (2 * torch.rand(matrix.shape, generator=generator) - 1)
            for matrix in _matrices(self.weight, self.base)
        ]
        stack = torch.stack([change.T if self.weight.transposed else change for change in changes])
        return stack.reshape(self.weight.shape)

    @property
    def _has_columns(self) -> bool:
        """Whether the edits act on the columns of the matrices as they are stored."""
        return (self.output_dim == -2) != self.weight.transposed

    def _values(self, stored: Tensor) -> Tensor:
        return self._requantized(stored, self.base.read(self.weight.scales))[0]

    def _scales(self, stored: Tensor) -> Tensor:
        return self._requantized(self.base.read(self.weight.values), stored)[1]

    def _requantized(self, values: Tensor, scales: Tensor) -> tuple[Tensor, Tensor]:
        for matrix in block_scaled_matrices(values, scales):
            factors = matrix.factors()
            if not bool((factors.isfinite() & (factors >= 0)).all()):
                raise InputError(
                    f"{self.weight.scales}: the base has factors in it that are negative, infinite or not numbers. "
                    "Download the base again."
                )
        return requantize(values, scales, self.edits, columns=self._has_columns)


def requantize(values: Tensor, scales: Tensor, edits: Sequence[LayerEdit], *, columns: bool) -> tuple[Tensor, Tensor]:
    """A quantized weight, or a stack of them, with edits folded in.

    Args:
        values: its numbers, as `sea_export.model.block_scaled.block_scaled_matrices` takes them.
        scales: the factors of its blocks.
        edits: the layer edits in the order of their application.
        columns: whether they act on the columns of the matrices as they are stored.

    Returns:
        The same two tensors of the folded weight.

    Raises:
        InputError: an edit is not linear.
    """
    new_values, new_scales = torch.empty_like(values), torch.empty_like(scales)
    stacks = block_scaled_matrices(values, scales), block_scaled_matrices(new_values, new_scales)
    for matrix, destination in zip(*stacks, strict=True):
        for rows, folded in fold_rows(matrix, edits, columns=columns, multiple=matrix.block_rows):
            before, after = matrix.part(rows), destination.part(rows)
            made = before.quantized(folded, before.next_scales(folded))
            after.values.copy_(made.values)
            after.scales.copy_(made.scales)
    return new_values, new_scales


def _matrices(weight: QuantizedWeight, checkpoint: Checkpoint) -> Iterator[BlockScaled]:
    return block_scaled_matrices(checkpoint.read(weight.values), checkpoint.read(weight.scales))


def _between(found: Tensor, one: Tensor, other: Tensor) -> bool:
    """Whether all of `found` lies between two numbers, or is one of them. False for what is not a number."""
    return bool(((torch.minimum(one, other) <= found) & (found <= torch.maximum(one, other))).all())


def _sums(before: BlockScaled, folded: Tensor, stored: Tensor) -> Tensor:
    """(6,) The sums that make up a `StorageError`: squares, but for the fifth, which is a product."""
    original = before.weights()
    change = folded - original
    # An error that is anything up to half of the spacing has a third of the square of that as its mean square.
    own = before.half_spacing().square_().sum() / 3
    kept = (stored - original).mul_(change).sum()
    squares = [one.square().sum() for one in (stored - folded, folded, original, change)]
    return torch.stack([squares[0], squares[1], own, squares[2], kept, squares[3]])
