"""The change of the weight of one linear map, in factor form: what an adapter of PEFT does to it.

With W (out, in) the weight as `torch.nn.Linear` has it, D a diagonal, and s the strength,

    W' = D W + L R,        the changed weight at strength s:  W + s (W' - W) = (I + s (D - I)) W + s L R.

- LoRA (Hu et al., arXiv 2106.09685): D = I, L = c B and R = A, c the scaling.
- DoRA (Liu et al., arXiv 2402.09353): D = diag(m / ‖W + c B A‖), with the norms of rows, L = D c B, and R = A. The
  norms are those of the weight that the adapter was made for, so that the change is linear in W.

The bias of the linear map stays as it is. What a linear map with a changed weight gives is computed from its own output
y and its input x: D (y - b) + L (R x) + b. No changed weight is formed for that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from sea_export.edit.factors import best_factors
from sea_export.edit.summary import WeightSummary
from sea_export.errors import InputError
from sea_export.options import check_strength

__all__ = ["WeightChange", "WeightFactors", "WeightHook", "check_same_shape", "sum_of_weight_changes"]


@dataclass(frozen=True)
class WeightChange:
    """The change of the weight of one linear map: W ↦ W + s (D W + L R - W). Float32 tensors."""

    left: Tensor
    """(out, r) L. r is at least 1, and L may be zero."""
    right: Tensor
    """(r, in) R."""
    scale: Tensor | None
    """(out,) diagonal of D, or None for the identity."""
    strength: float
    """s."""
    layer: int | None
    """The decoder layer of the linear map, counted from 0; None for the head, which comes after all layers."""
    relative_change: float | None
    """‖W' - W‖ / ‖W‖ at strength 1, Frobenius norms; None if it was not measured."""

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in) of the weight."""
        return self.left.shape[0], self.right.shape[1]

    @property
    def is_finite(self) -> bool:
        """Whether no tensor has a value that is NaN or infinite."""
        return all(bool(tensor.isfinite().all()) for tensor in self.tensors().values())

    def with_strength(self, strength: float) -> WeightChange:
        """The same change with another strength.

        Args:
            strength: s.

        Raises:
            InputError: the strength is out of range.
        """
        check_strength(strength)
        return replace(self, strength=strength)

    def summary(self, module: str) -> WeightSummary:
        """What is told about the change.

        Args:
            module: the name of the linear map in the model.
        """
        change = self.relative_change
        return WeightSummary(
            module=module,
            layer=self.layer,
            rank=self.left.shape[1],
            scaled_rows=self.scale is not None,
            strength=self.strength,
            relative_change=None if change is None else change * abs(self.strength),
        )

    def tensors(self) -> dict[str, Tensor]:
        """The tensors of the change by field name, without a scale that is None."""
        return {
            "left": self.left,
            "right": self.right,
            **({} if self.scale is None else {"scale": self.scale}),
        }

    def numbers(self) -> dict[str, float | None]:
        """All other fields of the change by name."""
        return {"strength": self.strength, "layer": self.layer, "relative_change": self.relative_change}

    def map_tensors(self, function: Callable[[Tensor], Tensor]) -> WeightChange:
        """The same change with `function` applied to each tensor."""
        mapped: dict[str, Any] = {name: function(tensor) for name, tensor in self.tensors().items()}
        return replace(self, **mapped)

    def to(self, device: torch.device) -> WeightChange:
        """The same change with its tensors on `device`."""
        return self.map_tensors(lambda tensor: tensor.to(device))

    def of_output(self, inputs: Tensor, products: Tensor) -> Tensor:
        """What the linear map gives without its bias, with this change.

        Args:
            inputs: (..., in) rows x, float32 or float64.
            products: (..., out) rows W x, of the same dtype.

        Returns:
            (..., out) rows (I + s (D - I)) W x + s L (R x).
        """
        left, right = self.left.to(inputs), self.right.to(inputs)
        changed = products + self.strength * ((inputs @ right.T) @ left.T)
        return changed if self.scale is None else changed + self.strength * (self.scale.to(inputs) - 1) * products


class WeightHook:
    """Forward hook of a linear map that replaces its output by that of the map with changed weights.

    Args:
        changes: the changes in the order in which they are applied.
    """

    def __init__(self, changes: Sequence[WeightChange]) -> None:
        self.changes = changes

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        products = output if output.dtype == torch.float64 else output.float()
        rows = inputs[0].to(products)
        bias = getattr(module, "bias", None)
        if bias is not None:
            products = products - bias.to(products)
        for change in self.changes:
            products = change.of_output(rows, products)
        return (products if bias is None else products + bias.to(products)).to(output.dtype)


@dataclass(frozen=True)
class WeightFactors:
    """Several changes of one weight as one: W ↦ scale ∘ W + left right. Float64, on the CPU."""

    scale: Tensor
    """(out,)"""
    left: Tensor
    """(out, r)"""
    right: Tensor
    """(r, in)"""

    @classmethod
    def of(cls, changes: Sequence[WeightChange]) -> WeightFactors:
        """The product of changes: D₂ (D₁ W + L₁ R₁) + L₂ R₂ = D₂ D₁ W + [D₂ L₁, L₂] [R₁; R₂].

        Args:
            changes: at least one, in the order in which they are applied.
        """
        product, *following = (cls._of_one(change) for change in changes)
        for one in following:
            product = cls(
                one.scale * product.scale,
                torch.cat([one.scale[:, None] * product.left, one.left], dim=1),
                torch.cat([product.right, one.right]),
            )
        return product

    @classmethod
    def _of_one(cls, change: WeightChange) -> WeightFactors:
        tensors = {name: tensor.double().cpu() for name, tensor in change.tensors().items()}
        scale = tensors.get("scale", torch.ones(change.shape[0], dtype=torch.float64))
        return cls(1 + change.strength * (scale - 1), change.strength * tensors["left"], tensors["right"])

    @property
    def scales_rows(self) -> bool:
        """Whether any row is scaled."""
        return bool((self.scale != 1).any())

    def apply(self, weight: Tensor) -> Tensor:
        """The changed weight.

        Args:
            weight: (out, in) float64.
        """
        return self.scale[:, None] * weight + self.left @ self.right


def sum_of_weight_changes(members: Sequence[Sequence[WeightChange]]) -> WeightChange:
    """The change that is the sum of several: W ↦ W + Σ (Wᵢ' - W).

    Args:
        members: each a product of changes of one weight, in the order in which they are applied.

    Returns:
        A change of strength 1, of the lowest rank that it can have.

    Raises:
        InputError: they are of weights of different shapes.
    """
    check_same_shape([change for member in members for change in member], "edits")
    parts = [WeightFactors.of(member) for member in members]
    scale = 1 + torch.stack([part.scale - 1 for part in parts]).sum(dim=0)
    left, right = torch.cat([part.left for part in parts], dim=1), torch.cat([part.right for part in parts])
    factors = best_factors(left, right, None)
    # Of changes that cancel only their rounding remains.
    remaining = factors.a.norm(dim=1) > torch.finfo(torch.float32).eps * left.norm() * right.norm()
    remaining &= factors.b.any(dim=0)
    if remaining.any():
        left, right = factors.b[:, remaining], factors.a[remaining]
    else:  # a rank is never 0, so that the size of a file bounds the shapes in it
        left, right = torch.zeros_like(left[:, :1]), torch.zeros_like(right[:1])
    return WeightChange(
        left=left,
        right=right,
        scale=scale if (scale != 1).any() else None,
        strength=1.0,
        layer=members[0][0].layer,
        relative_change=None,
    ).map_tensors(lambda tensor: tensor.float().contiguous())


def check_same_shape(changes: Sequence[WeightChange], subject: str) -> None:
    """Raises InputError for changes of weights of different shapes.

    Args:
        changes: those of one weight.
        subject: what the message begins with.
    """
    shapes = sorted({change.shape for change in changes})
    if len(shapes) > 1:
        raise InputError(f"{subject}: they change weights of different shapes {shapes}. Give edits of the same model.")
