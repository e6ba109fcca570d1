"""What a patch says of a file: which bytes of the base it takes over, and which bytes and folds come in their place."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypedDict

from sea_export.model.stored_dtypes import ITEM_SIZES
from sea_export.model.targets import Target

__all__ = ["Copy", "Data", "Fold", "Piece", "PieceRecord", "ResultFile", "piece_of", "record_of"]

_FOLDED_DTYPES = ("F64", "F32", "F16", "BF16")
_MAXIMUM_DIMENSIONS = 4


@dataclass(frozen=True)
class Copy:
    """The next bytes of the base's file, as they are.

    Attributes:
        count: how many.
    """

    count: int


@dataclass(frozen=True)
class Data:
    """Bytes that the patch holds, in the place of the next bytes of the base's file.

    Attributes:
        replaced: how many bytes of the base's file are left out.
        tensor: the name in the patch of the tensor whose bytes they are; None if there is nothing in their place.
    """

    replaced: int
    tensor: str | None


@dataclass(frozen=True)
class Fold:
    """The next tensor of the base's file, with the edit folded in.

    Some sums lie so near the middle between two numbers of the stored dtype that the processor decides how they are
    rounded. The patch holds what they were rounded to.

    Attributes:
        stored_as: what safetensors calls the dtype of the tensor.
        shape: its shape.
        target: the target whose edits are folded in.
        output_dim: the dimension of the tensor that has the hidden size: -2 or -1.
        positions: the name in the patch of the (n,) positions of such numbers in the flat tensor; None if there are
            none.
        values: the name of their (n,) values.
    """

    stored_as: str
    shape: tuple[int, ...]
    target: Target
    output_dim: int
    positions: str | None = None
    values: str | None = None

    @property
    def count(self) -> int:
        """The number of bytes of the tensor."""
        return math.prod(self.shape) * ITEM_SIZES[self.stored_as]


Piece = Copy | Data | Fold


@dataclass(frozen=True)
class ResultFile:
    """One file of the output.

    Attributes:
        size: its size in bytes.
        sha256: its SHA-256, in hexadecimal.
        source: the file of the base that pieces are copied from; None if there is none.
        pieces: what it consists of. Together they go through the file of the base once, from start to end.
    """

    size: int
    sha256: str
    source: str | None
    pieces: tuple[Piece, ...]

    @property
    def taken(self) -> int:
        """The number of bytes of the base's file that the pieces go through."""
        return sum(piece.replaced if isinstance(piece, Data) else piece.count for piece in self.pieces)

    @property
    def tensors(self) -> tuple[str, ...]:
        """The names of all tensors of the patch that it uses."""
        names = []
        for piece in self.pieces:
            if isinstance(piece, Data):
                names.append(piece.tensor)
            elif isinstance(piece, Fold):
                names += [piece.positions, piece.values]
        return tuple(name for name in names if name is not None)


class _FoldRecord(TypedDict):
    dtype: str
    shape: list[int]
    target: str
    output_dim: int
    positions: str | None
    values: str | None


class PieceRecord(TypedDict, total=False):
    """A piece as JSON: a copy has `copy`, a fold `fold`, and data has `replaced` and `data`."""

    copy: int
    replaced: int
    data: str | None
    fold: _FoldRecord


def record_of(piece: Piece) -> dict[str, Any]:
    """A piece as plain JSON data.

    Args:
        piece: the piece.
    """
    if isinstance(piece, Copy):
        return {"copy": piece.count}
    if isinstance(piece, Data):
        return {"replaced": piece.replaced, "data": piece.tensor}
    fold = {
        "dtype": piece.stored_as,
        "shape": list(piece.shape),
        "target": str(piece.target),
        "output_dim": piece.output_dim,
        "positions": piece.positions,
        "values": piece.values,
    }
    return {"fold": fold}


def piece_of(record: Mapping[str, Any]) -> Piece:
    """The piece that a record describes.

    Args:
        record: of the types of `PieceRecord`.

    Raises:
        ValueError: it describes none.
    """
    if record.keys() == {"copy"}:
        return Copy(_size(record["copy"]))
    if record.keys() == {"replaced", "data"}:
        return Data(_size(record["replaced"]), record["data"])
    if record.keys() != {"fold"}:
        raise ValueError("a piece is neither a copy, nor data, nor a fold")
    fold = record["fold"]
    shape = tuple(_size(count) for count in fold["shape"])
    fits = 2 <= len(shape) <= _MAXIMUM_DIMENSIONS and 0 not in shape
    if not fits or fold["dtype"] not in _FOLDED_DTYPES or fold["output_dim"] not in (-2, -1):
        raise ValueError("a fold is not of a weight in floating-point numbers")
    if (fold["positions"] is None) != (fold["values"] is None):
        raise ValueError("a fold has positions without values, or values without positions")
    return Fold(
        fold["dtype"], shape, Target.parse(fold["target"]), fold["output_dim"], fold["positions"], fold["values"]
    )


def _size(value: int) -> int:
    if value < 0:
        raise ValueError("a size is negative")
    return value
