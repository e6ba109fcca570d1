"""Weights stored as numbers of few bits with a factor for each block: FP8 (E4M3) and MXFP4 (E2M1).

Each stored number means its value times the factor of its block. How a block's factor follows from its weights is not
part of a storage, and quantizers differ in it. So when the weights of a block change, its factor changes by what the
largest of them has changed by: the numbers fill their range as they did before, and a block that has not changed is
stored as it was, bit for bit. Factors that are powers of two change by a power of two.

E4M3 and E2M1 are defined in "OCP Microscaling Formats (MX) Specification", version 1.0, 2023.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["PACKED_BLOCK", "BlockScaled", "block_scaled_matrices", "grid_of", "holds_factors"]

PACKED_BLOCK = 32
"""The number of weights in a block of MXFP4: a part of one row, in 16 bytes."""
_EXPONENT_BIAS = 127
_FLOATS = (torch.float32, torch.bfloat16, torch.float16)
_POWERS_OF_TWO = (torch.uint8, *([torch.float8_e8m0fnu] if hasattr(torch, "float8_e8m0fnu") else []))


@dataclass(frozen=True)
class _Numbers:
    """The numbers of a floating-point format."""

    largest: float
    mantissa_bits: int
    lowest_exponent: int

    @property
    def limit(self) -> float:
        """What lies half of a spacing above the largest number, up to which that is the nearest one."""
        return self.largest + 2.0 ** (math.frexp(self.largest)[1] - 2 - self.mantissa_bits)

    def spacing(self, numbers: Tensor) -> Tensor:
        """How far each number, in float64, is from its next larger one."""
        exponents = torch.frexp(numbers).exponent - 1
        exponents = exponents.where(numbers != 0, self.lowest_exponent).clamp(min=self.lowest_exponent)
        return torch.ldexp(torch.ones_like(numbers), exponents - self.mantissa_bits)


_E4M3 = _Numbers(largest=448.0, mantissa_bits=3, lowest_exponent=-6)
_E2M1 = _Numbers(largest=6.0, mantissa_bits=1, lowest_exponent=0)
_E2M1_VALUES = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0], dtype=torch.float64)
# What each code of eight or four bits means. To look a number up is several times faster than to convert it.
_E4M3_TABLE = torch.arange(256).to(torch.uint8).view(torch.float8_e4m3fn).double()
_E2M1_TABLE = torch.cat([_E2M1_VALUES, -_E2M1_VALUES])


def holds_factors(dtype: torch.dtype) -> bool:
    """Whether factors can be stored in a dtype: as floats, or as exponents of two in one byte.

    Args:
        dtype: the dtype.
    """
    return dtype in (*_FLOATS, *_POWERS_OF_TWO)


def grid_of(scales: tuple[int, ...]) -> tuple[int, int]:
    """The numbers of blocks below and beside one another in each matrix.

    Args:
        scales: the shape of the stored factors, one for each block. A single factor may have any shape.
    """
    return (1, 1) if len(scales) < 2 else (scales[-2], scales[-1])


@dataclass(frozen=True)
class BlockScaled:
    """One matrix of weights, which is dequantized and requantized a few rows at a time."""

    values: Tensor
    """(rows, columns) float8_e4m3fn, or (rows, columns / 32, 16) uint8 with two numbers of four bits in each byte."""
    scales: Tensor
    """(blocks below one another, blocks beside one another) The factors."""

    @property
    def shape(self) -> torch.Size:
        """(rows, columns)"""
        packed = 2 if self.values.dtype == torch.uint8 else 1
        return torch.Size((self.values.shape[0], packed * math.prod(self.values.shape[1:])))

    @property
    def block_rows(self) -> int:
        """The number of rows of a block."""
        return self.shape[0] // self.scales.shape[0]

    def part(self, rows: slice) -> BlockScaled:
        """Some rows, in the same memory.

        Args:
            rows: whole blocks of rows.
        """
        blocks = slice(rows.start // self.block_rows, rows.stop // self.block_rows)
        return BlockScaled(self.values[rows], self.scales[blocks])

    def __getitem__(self, rows: slice) -> Tensor:
        """(rows, columns) float64: the weights in some whole blocks of rows, exactly."""
        return self.part(rows).weights()

    def weights(self) -> Tensor:
        """(rows, columns) float64: the weights, exactly."""
        return self._times_factors(self.numbers())

    def numbers(self) -> Tensor:
        """(rows, columns) float64: the numbers, without their factors."""
        codes = self.values.view(torch.uint8)
        if self._packed:  # the lower four bits of a byte are the first of its two numbers
            codes = torch.stack([codes & 15, codes >> 4], dim=-1)
        table = _E2M1_TABLE if self._packed else _E4M3_TABLE
        return table.index_select(0, codes.flatten().int()).view(self.shape)

    def factors(self) -> Tensor:
        """(blocks below one another, blocks beside one another) float64: the factors."""
        return _decoded(self.scales)

    def half_spacing(self) -> Tensor:
        """(rows, columns) float64: how far each weight may have been from what is stored, at most."""
        return self._times_factors(self._format.spacing(self.numbers())).div_(2)

    def next_scales(self, weights: Tensor, error: Tensor | float = 0.0) -> Tensor:
        """The factors for new weights.

        Args:
            weights: (rows, columns) float64.
            error: what is added to the absolute value of each.

        Returns:
            like `scales`.
        """
        old = self._largest(self.numbers().abs_()) * self.factors()
        new = self._largest((weights.abs() + error).clamp_(min=0))
        return _scaled(self.scales, old, new, self._format)

    def quantized(self, weights: Tensor, scales: Tensor) -> BlockScaled:
        """New weights in the same storage, each rounded to the nearest number.

        Args:
            weights: (rows, columns) float64.
            scales: like `scales`, their factors.
        """
        factors, limit = _decoded(scales), self._format.largest
        factors = factors.where(factors > 0, torch.inf)  # a factor of zero stores zeros
        numbers = (self._blocked(weights) / factors[:, None, :, None]).reshape(weights.shape).clamp_(-limit, limit)
        return BlockScaled(_packed(numbers) if self._packed else numbers.to(self.values.dtype), scales)

    @property
    def _packed(self) -> bool:
        return self.values.dtype == torch.uint8

    @property
    def _format(self) -> _Numbers:
        return _E2M1 if self._packed else _E4M3

    def _blocked(self, matrix: Tensor) -> Tensor:
        """(blocks below one another, rows of a block, blocks beside one another, columns of a block)"""
        return matrix.view(len(matrix) // self.block_rows, self.block_rows, self.scales.shape[1], -1)

    def _times_factors(self, numbers: Tensor) -> Tensor:
        self._blocked(numbers).mul_(self.factors()[:, None, :, None])
        return numbers

    def _largest(self, magnitudes: Tensor) -> Tensor:
        """The largest value of each block."""
        return self._blocked(magnitudes).amax(dim=(1, 3))


def block_scaled_matrices(values: Tensor, scales: Tensor) -> Iterator[BlockScaled]:
    """The matrices of a stack of weights, such as those of experts. They share the memory of the stack.

    Args:
        values: (..., rows, columns) float8_e4m3fn, or (..., rows, columns / 32, 16) uint8.
        scales: the factors of each matrix.
    """
    dimensions = 3 if values.dtype == torch.uint8 else 2
    stack = values.reshape(-1, *values.shape[-dimensions:])
    grids = scales.reshape(-1, *grid_of(tuple(scales.shape)))
    for matrix, grid in zip(stack, grids, strict=True):
        yield BlockScaled(matrix, grid)


def _decoded(stored: Tensor) -> Tensor:
    """Stored factors in float64."""
    if stored.dtype in _FLOATS:
        return stored.double()
    exponents = _exponents(stored)
    powers = torch.ldexp(torch.ones(stored.shape, dtype=torch.float64), exponents)
    return powers.where(exponents <= _EXPONENT_BIAS, torch.nan)  # the highest byte is no number


def _exponents(stored: Tensor) -> Tensor:
    return stored.view(torch.uint8).int() - _EXPONENT_BIAS


def _scaled(stored: Tensor, old: Tensor, new: Tensor, numbers: _Numbers) -> Tensor:
    """Factors of blocks whose largest weight was `old` and is `new`. Of a block that was zero they just suffice."""
    was_zero, is_zero = old == 0, new == 0
    if stored.dtype in _FLOATS:
        factors = torch.where(was_zero, new / numbers.largest, stored.double() * (new / old))
        rounded = factors.clamp(min=torch.finfo(stored.dtype).tiny).to(stored.dtype)
        return rounded.where(~is_zero, stored)
    exponents, full = _exponents(stored), _power_above(new / numbers.limit)
    moved = torch.where(was_zero, full, exponents + full - _power_above(old / numbers.limit))
    biased = (moved.where(~is_zero, exponents) + _EXPONENT_BIAS).clamp(0, 2 * _EXPONENT_BIAS)
    return biased.to(torch.uint8).view(stored.dtype)


def _power_above(numbers: Tensor) -> Tensor:
    """The exponent of the smallest power of two that is not below each positive number."""
    mantissa, exponent = torch.frexp(numbers)
    return exponent - (mantissa == 0.5).int()


def _packed(numbers: Tensor) -> Tensor:
    """(rows, columns / 32, 16) bytes, each number rounded to the nearest one, or to the even one of two."""
    spacing = _E2M1.spacing(numbers)
    rounded = (numbers / spacing).round_() * spacing
    codes = torch.bucketize(rounded.abs(), _E2M1_VALUES) + 8 * rounded.signbit()
    pairs = codes.to(torch.uint8).reshape(len(numbers), -1, PACKED_BLOCK // 2, 2)
    return pairs[..., 0] | (pairs[..., 1] << 4)
