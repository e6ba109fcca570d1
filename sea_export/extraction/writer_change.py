"""What lies between two versions of the weights and biases of one output projection.

Sought is an edit of its output: W_B = (I + D) W_A and b_B = (I + D) b_A + c, with the same D of low rank for all
experts, whose inputs stand side by side in W.

**The rank** is read from the singular values of W_B - W_A: it is the number of those that rounding alone does not make
(`sea_export.extraction.storage_units`). An edit of rank k gives a change of rank k, and rounding the result to the
storage adds a matrix of errors. A rank counts as low if the two factors of D are smaller than D, 2k < d, and if it is
below half of the number of inputs. D = U Uᵀ (W_B - W_A) W_A⁺, with U the left singular vectors of the change. What D
does in directions that outputs hardly have is known as badly as rounding allows, and matters as little.

**The constant** is what is left of the change of the biases. It counts if it is larger than what rounding makes: half a
unit of each bias, and what the rounding of the weights does to D b_A, at most its largest singular value times the norm
of W_A⁺ b_A.

**The proof.** A change of low rank need not be an edit of the output: its rows may leave the span of those of W_A. So
the edit, as it will be stored, is folded into W_A and compared with W_B. What is left must be what one rounding to the
storage explains, and less than most of what differs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from sea_export.edit.fold import fold_rows
from sea_export.edit.layer_edit import LayerEdit
from sea_export.errors import InputError
from sea_export.export.stored_layout import StoredParameter
from sea_export.extraction.joint_triangle import JointTriangle, joint_triangle
from sea_export.extraction.storage_units import ErrorMatrix, Residual, units_of
from sea_export.model.checkpoint import Checkpoint
from sea_export.model.load_model import is_finite
from sea_export.model.targets import Target

__all__ = ["Writer", "WriterChange", "change_of"]

_LEAST_EXPLAINED = 0.25
"""The least share of the squared change that an edit accounts for. Rounding hides most of a change of its own size."""


@dataclass(frozen=True)
class Writer:
    """An output projection, and where a checkpoint stores it.

    Attributes:
        target: the target.
        size: the hidden size d.
        weights: where its weights are.
        biases: where the biases are that both checkpoints have.
        new_biases: the stored names of those that only B has.
        is_mixture: whether it is the sum of several experts.
    """

    target: Target
    size: int
    weights: tuple[StoredParameter, ...]
    biases: tuple[StoredParameter, ...]
    new_biases: tuple[str, ...]
    is_mixture: bool

    @property
    def tensors(self) -> tuple[str, ...]:
        """The stored names of all its tensors."""
        parts = (part for parameter in (*self.weights, *self.biases) for part in parameter.parts)
        return (*parts, *self.new_biases)


@dataclass(frozen=True)
class WriterChange:
    """What lies between two versions of an output projection.

    Attributes:
        target: the target.
        singular_values: all those of W_B - W_A, in descending order.
        rounding: the largest singular value that rounding alone makes.
        rank: the number of singular values above it.
        half_units: what is left with the edit, as a root mean square in halves of a unit of the storage: at most 1
            where numbers were rounded once. None if no edit was tried.
        edit: the edit; None if there is none.
        problem: why there is none, as a clause; None if there is one.
    """

    target: Target
    singular_values: tuple[float, ...]
    rounding: float
    rank: int
    half_units: float | None
    edit: LayerEdit | None
    problem: str | None

    def to_dict(self) -> dict[str, Any]:
        """All of it but the edit, as plain JSON data."""
        return {
            "target": str(self.target),
            "rank": self.rank,
            "singular_values": list(self.singular_values),
            "rounding": self.rounding,
            "half_units": self.half_units,
            "problem": self.problem,
        }

    def error(self, rank: int) -> float:
        """How far the nearest matrix of a rank is from W_B - W_A, relative to the latter's Frobenius norm.

        Args:
            rank: the rank.
        """
        squares = [value * value for value in self.singular_values]
        return (sum(squares[rank:]) / sum(squares)) ** 0.5 if any(squares) else 0.0


def change_of(writer: Writer, a: Checkpoint, b: Checkpoint) -> WriterChange:
    """What lies between the two versions of an output projection that two checkpoints hold.

    Args:
        writer: the output projection.
        a: the first checkpoint.
        b: the second, which has its tensors in the same form.

    Raises:
        InputError: a value is not finite.
        SeaExportError: a file became shorter while it was read.
    """
    errors, norms = ErrorMatrix(writer.size), [0.0, 0.0]
    dtype = a.coarsest_dtype(part for weight in writer.weights for part in weight.parts)

    def pieces() -> Iterator[tuple[Tensor, Tensor]]:
        for before, after in _columns(writer, a, b):
            errors.update(units_of(after, dtype).T)
            norms[0] += float(before.square().sum())
            norms[1] += float((after - before).square().sum())
            yield before, after

    triangle = joint_triangle(pieces(), writer.size)
    values, directions = triangle.spectrum()
    rounding = errors.largest_singular_value
    rank = int((values > rounding).sum())
    found = WriterChange(writer.target, tuple(values.tolist()), rounding, rank, None, None, None)
    if rank > 0 and not 2 * rank < min(writer.size, triangle.inputs):
        return replace(found, problem=f"its change has rank {rank} of {len(values)}, which is no low rank")
    factors = _factors(triangle, directions[:, :rank])
    shift = _constant(writer, factors, a, b, lambda biases: rounding * triangle.input_norms(biases))
    if isinstance(shift, str):
        return replace(found, problem=shift)
    changed = norms[1] if shift is None else norms[1] + float(shift.square().sum())
    edit = _edit(writer.size, factors, shift, relative_change=(changed / norms[0]) ** 0.5 if norms[0] else 0.0)
    residual = Residual((norms[0] / (writer.size * triangle.inputs)) ** 0.5, dtype)
    _fold_weights(residual, writer, edit, a, b)
    return _judged(found, edit, residual)


def _judged(found: WriterChange, edit: LayerEdit, residual: Residual) -> WriterChange:
    problem = None
    if not edit.is_finite:
        problem = "its edit is not finite in float32"
    elif not residual.is_rounding:
        problem = (
            f"no map of its output makes its change (rank {found.rank}): {residual.half_units / 2:.2g} units of the "
            "storage are left on average"
        )
    elif not residual.explained >= _LEAST_EXPLAINED:
        problem = "its change is no more than rounding"
    return replace(found, half_units=residual.half_units, edit=edit if problem is None else None, problem=problem)


# Weights


def _columns(writer: Writer, a: Checkpoint, b: Checkpoint) -> Iterator[tuple[Tensor, Tensor]]:
    """Some columns of W_A and W_B at a time, as rows (n, d), float64."""
    for parameter in writer.weights:
        for part in parameter.parts:
            before, after = (_as_rows(_read(one, part), parameter.output_dim) for one in (a, b))
            for one, other in zip(before, after, strict=True):
                for start in range(0, len(one), writer.size):
                    rows = slice(start, start + writer.size)
                    yield one[rows].double(), other[rows].double()


def _read(checkpoint: Checkpoint, name: str) -> Tensor:
    tensor = checkpoint.read(name)
    if not is_finite(tensor):
        raise InputError(
            f"{checkpoint.directory.name}: {name} has values that are infinite or not numbers. Download the model "
            "again."
        )
    return tensor


def _as_rows(stored: Tensor, output_dim: int) -> Tensor:
    """(count, m, d) the weights in a stored tensor, without a copy."""
    matrices = stored.reshape(-1, *stored.shape[-2:])
    return matrices if _is_transposed(stored, output_dim) else matrices.transpose(1, 2)


def _is_transposed(stored: Tensor, output_dim: int) -> bool:
    return output_dim % stored.ndim == stored.ndim - 1


def _fold_weights(residual: Residual, writer: Writer, edit: LayerEdit, a: Checkpoint, b: Checkpoint) -> None:
    for parameter in writer.weights:
        for part in parameter.parts:
            before, after = _read(a, part), _read(b, part)
            shape, columns = (-1, *before.shape[-2:]), not _is_transposed(before, parameter.output_dim)
            for one, other in zip(before.reshape(shape), after.reshape(shape), strict=True):
                for rows, folded in fold_rows(one, [edit], columns=columns):
                    residual.update(one[rows].double(), other[rows].double(), folded)


# The edit


@dataclass(frozen=True)
class _Map:
    """D = left right."""

    left: Tensor
    """(d, k)"""
    right: Tensor
    """(k, d)"""

    def __call__(self, rows: Tensor) -> Tensor:
        return (rows @ self.right.T) @ self.left.T


def _factors(triangle: JointTriangle, directions: Tensor) -> _Map:
    """D in factors, each column of the first with its element of largest magnitude positive."""
    if directions.shape[1] == 0:
        return _Map(directions, directions.T)
    signs = directions.gather(0, directions.abs().argmax(dim=0, keepdim=True)).sign()
    left = directions * signs
    return _Map(left, triangle.rows_of(left))


def _constant(
    writer: Writer, change: _Map, a: Checkpoint, b: Checkpoint, error_at: Callable[[Tensor], Tensor]
) -> Tensor | str | None:
    """c of shape (d,); None if there is none; or why the biases have none in common.

    `error_at` gives how far the rounding of the weights may move D b for biases (n, d).
    """
    rows, bounds = [], []
    for parameter in writer.biases:
        for part in parameter.parts:
            before, after = (_read(one, part).double().reshape(-1, writer.size) for one in (a, b))
            units = units_of(torch.maximum(before.abs(), after.abs()), a.tensors[part].dtype)
            rows.append(after - before - change(before))
            bounds.append(units.norm(dim=1) / 2 + error_at(before))
    for name in writer.new_biases:
        after = _read(b, name).double().reshape(-1, writer.size)
        rows.append(after)
        bounds.append(units_of(after, b.tensors[name].dtype).norm(dim=1) / 2)
    if not rows:
        return None
    constants = torch.cat(rows)
    if bool((constants.norm(dim=1) <= torch.cat(bounds)).all()):
        return None
    if writer.is_mixture:
        return "the biases of its experts change by a constant, which no edit of their sum adds"
    return constants[0]


def _edit(size: int, change: _Map, shift: Tensor | None, *, relative_change: float) -> LayerEdit:
    """The edit. Its relative change is that of outputs, for inputs whose features are independent and of one size."""
    nothing, has_map = torch.zeros(size, 0), change.left.shape[1] > 0
    return LayerEdit(
        positive=nothing,
        negative=nothing,
        identity=1.0,
        strength=1.0,
        scale=None,
        shift=None if shift is None else shift.float(),
        reader=None,
        positive_values=torch.zeros(0),
        negative_values=torch.zeros(0),
        relative_change=relative_change,
        signature=None,
        reader_error=None,
        left=change.left.float().contiguous() if has_map else None,
        right=change.right.float().contiguous() if has_map else None,
    )
