"""The weights that an adapter adapts: those that give edited outputs, and those that are changed by themselves."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sea_export.edit.low_rank import LowRankEdit
from sea_export.edit.weight_change import WeightFactors
from sea_export.errors import InputError
from sea_export.model.architecture import ProjectionWeight

__all__ = ["ChangedWeight", "EditedWeight"]


@dataclass(frozen=True)
class EditedWeight:
    """One weight that gives an edited output, and its edit."""

    weight: ProjectionWeight
    edit: LowRankEdit
    bias: Tensor | None
    """(d,) the edited bias b', where the base has one."""
    constant: Tensor | None
    """(d,) b' - b; None if it is zero."""
    is_parameter: bool
    """Whether PEFT has to adapt the parameter (`target_parameters`), and not the linear map."""

    @property
    def module(self) -> str:
        """The name in the model of the linear map, or of the module that holds the experts."""
        return self.weight.module

    @property
    def scale(self) -> Tensor:
        """(d,) the diagonal of D."""
        return self.edit.scale

    @property
    def keeps_nothing(self) -> bool:
        """Whether all of W is removed, which no adapter of low rank can do."""
        return self.edit.identity == 0

    @property
    def is_scaled(self) -> bool:
        """Whether plain LoRA would need the full rank."""
        return self.edit.identity != 1 or bool((self.edit.scale != 1).any())

    @property
    def changes_anything(self) -> bool:
        """Whether the edit is not the identity."""
        return self.is_scaled or self.constant is not None or bool((self.edit.left != 0).any())

    def low_rank(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """L (..., d, k) and R W (..., k, m): the change of W without the scales, for a weight W (..., d, m) float64."""
        return self.edit.left, self.edit.right @ weight

    def fold(self, weight: Tensor) -> Tensor:
        """The edited weight W' (..., d, m) of a weight W (..., d, m), both float64."""
        edit = self.edit
        return edit.scale[:, None] * (edit.identity * weight + edit.left @ (edit.right @ weight))


@dataclass(frozen=True)
class ChangedWeight:
    """One weight, and its change W ↦ D W + L R = D (W + D⁻¹ L R). Its bias stays."""

    weight: ProjectionWeight
    factors: WeightFactors
    """D, L and R."""
    bias: None = None
    constant: None = None
    is_parameter: bool = False

    @property
    def module(self) -> str:
        """The name in the model of the linear map."""
        return self.weight.module

    @property
    def is_scaled(self) -> bool:
        """Whether plain LoRA would need the full rank."""
        return self.factors.scales_rows

    @property
    def keeps_nothing(self) -> bool:
        """Whether all of W is removed, which no adapter of low rank can do."""
        return not self.factors.scale.any()

    @property
    def changes_anything(self) -> bool:
        """Whether the change is not zero."""
        return self.is_scaled or bool(self.factors.left.any() and self.factors.right.any())

    @property
    def scale(self) -> Tensor:
        """(out,) D."""
        return self.factors.scale

    def low_rank(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """D⁻¹ L (out, r) and R (r, in).

        Args:
            weight: (out, in) W, which is not needed.

        Raises:
            InputError: a row is scaled by zero, whose change DoRA cannot hold.
        """
        if not self.scale.all():
            raise InputError(
                f"{self.module}: the edit scales a row of its weight by zero, which no adapter holds. Choose --format "
                "merged."
            )
        return self.factors.left / self.scale[:, None], self.factors.right

    def fold(self, weight: Tensor) -> Tensor:
        """The changed weight W' (out, in).

        Args:
            weight: (out, in) W, float64.
        """
        return self.factors.apply(weight.to(torch.float64))
