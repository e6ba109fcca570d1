"""How far rounding to a stored dtype moves numbers, and what a matrix of such errors looks like.

The unit of a number is the distance to the next one of its dtype. Rounding moves a number by half a unit at most, and
where nothing else is known, anywhere in between is as likely: the variance of the error is unit² / 12.

A matrix of independent errors has a largest singular value of at most about √(largest sum of the variances of a row) +
√(largest sum of those of a column): Bandeira and van Handel, "Sharp nonasymptotic bounds on the norm of random matrices
with independent entries", Annals of Probability 44, 2016.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["ErrorMatrix", "Residual", "units_of"]

_MARGIN = 1.5
"""How many times the bound a singular value may be that rounding alone makes: small matrices have more chance in it."""
_LARGEST_RESIDUAL = 1.0
"""The largest residual of one rounding, in halves of a unit, as a root mean square."""
_LARGEST_ERROR = 4.0
"""The largest residual of a single number, in units. Where others have folded in half precision, the steps between were
rounded too."""


def units_of(values: Tensor, dtype: torch.dtype) -> Tensor:
    """The distance of numbers to the next ones of a dtype, but never finer than those of float32, in which edits are.

    Args:
        values: any shape, float64.
        dtype: the stored dtype.

    Returns:
        The same shape, float64.
    """
    kinds = torch.finfo(dtype), torch.finfo(torch.float32)
    coarsest = max(kinds, key=lambda kind: kind.eps)
    smallest = values.abs().clamp(min=float(coarsest.tiny))
    return torch.ldexp(torch.full_like(smallest, coarsest.eps), torch.frexp(smallest).exponent - 1)


class ErrorMatrix:
    """The variances of the rounding errors of a matrix (rows, columns), which is given some of its columns at a time.

    Args:
        rows: the number of rows.
    """

    def __init__(self, rows: int) -> None:
        self._rows = torch.zeros(rows, dtype=torch.float64)
        self._largest_column = 0.0

    def update(self, units: Tensor) -> None:
        """Takes in some columns.

        Args:
            units: (rows, n) the units of their numbers.
        """
        variances = units.square() / 12
        self._rows += variances.sum(dim=1)
        self._largest_column = max(self._largest_column, float(variances.sum(dim=0).max()))

    @property
    def largest_singular_value(self) -> float:
        """The largest one that rounding alone makes."""
        return _MARGIN * (float(self._rows.max()) ** 0.5 + self._largest_column**0.5)


class Residual:
    """How far stored tensors are from what an edit makes of the base's, against what rounding explains.

    Args:
        size: the root mean square of the base's numbers. Units of smaller ones do not count for single numbers, because
            an edit has an error of its own, which is of one size everywhere.
        dtype: the stored dtype.
    """

    def __init__(self, size: float, dtype: torch.dtype) -> None:
        self._size, self._dtype = size, dtype
        self._squares = self._unit_squares = self._changes = 0.0
        self._largest = 0.0

    def update(self, before: Tensor, after: Tensor, edited: Tensor) -> None:
        """Takes in a part of a tensor.

        Args:
            before: the numbers of the base, float64, any shape.
            after: those of the other checkpoint.
            edited: what the edit makes of the base's.
        """
        distance, sizes = (after - edited).abs(), torch.maximum(before.abs(), after.abs())
        self._squares += float(distance.square().sum())
        self._unit_squares += float(units_of(sizes, self._dtype).square().sum())
        self._changes += float((after - before).square().sum())
        relative = distance / units_of(sizes.clamp(min=self._size), self._dtype)
        self._largest = max(self._largest, float(relative.max()))

    @property
    def half_units(self) -> float:
        """Its root mean square, in halves of a unit: at most 1 where numbers were rounded once."""
        return 2 * (self._squares / self._unit_squares) ** 0.5 if self._squares else 0.0

    @property
    def explained(self) -> float:
        """The share of the squared change that the edit accounts for."""
        return 1 - self._squares / self._changes if self._changes else 1.0

    @property
    def is_rounding(self) -> bool:
        """Whether rounding explains it."""
        return self.half_units <= _LARGEST_RESIDUAL and self._largest <= _LARGEST_ERROR
