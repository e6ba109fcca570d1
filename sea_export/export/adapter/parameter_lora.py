"""LoRA of parameters that are not linear maps by themselves, in the layout of PEFT's `target_parameters`.

These are the stacked weights of experts. Expert e has its own factors W'_e - W_e = B_e A_e, (d, r) and (r, m). PEFT has
one pair for all experts: lora_A (experts r, inputs), in which the rows of an expert are together, and lora_B (outputs,
r experts), in which the columns of an expert are apart. The module's own `is_transposed` decides which of the last two
dimensions PEFT takes for the outputs. It may be wrong: B_e A_e can be transposed without changing its rank.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sea_export.model.architecture import ProjectionWeight

__all__ = ["experts_of", "parameter_change", "parameter_factors", "with_rank"]


def experts_of(weight: ProjectionWeight, parameter: Tensor) -> Tensor:
    """The weights (experts, d, m) in a parameter, as a view.

    Args:
        weight: which weight.
        parameter: (experts, d, m) or (experts, m, d), or with two dimensions for a single weight.
    """
    matrices = parameter if parameter.ndim > 2 else parameter[None]
    return matrices.transpose(-1, -2) if weight.transposed else matrices


def parameter_factors(
    weight: ProjectionWeight, lefts: Sequence[Tensor], rights: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """PEFT's lora_A and lora_B for a parameter.

    Args:
        weight: which weight.
        lefts: for each expert (d, r_e).
        rights: for each expert (r_e, m), so that W'_e - W_e = left right.

    Returns:
        lora_A (experts r, inputs) and lora_B (outputs, r experts), with r the largest r_e.
    """
    rank = max(len(right) for right in rights)
    left = torch.stack([_padded(left.T[None], rank)[0].T for left in lefts])
    right = torch.stack([_padded(right[None], rank)[0] for right in rights])
    if _swapped(weight):
        left, right = right.transpose(-1, -2), left.transpose(-1, -2)
    experts, _, inputs = right.shape
    return right.reshape(experts * rank, inputs), left.permute(1, 2, 0).reshape(-1, rank * experts)


def parameter_change(weight: ProjectionWeight, experts: int, a: Tensor, b: Tensor) -> Tensor:
    """The change (experts, d, m) that PEFT computes from lora_A and lora_B.

    Args:
        weight: which weight.
        experts: the number of experts.
        a: (experts r, inputs) lora_A.
        b: (outputs, r experts) lora_B.
    """
    right = a.reshape(experts, -1, a.shape[1])
    left = b.reshape(b.shape[0], -1, experts).permute(2, 0, 1)
    change = left @ right
    return change.transpose(-1, -2) if _swapped(weight) else change


def with_rank(name: str, factor: Tensor, rank: int, experts: int) -> Tensor:
    """A factor of LoRA, filled with zeros up to a rank.

    Args:
        name: the name of the tensor, which tells lora_A from lora_B.
        factor: lora_A (experts r, inputs) or lora_B (outputs, r experts).
        rank: the new rank.
        experts: the number of experts; 1 for a linear map.
    """
    if ".lora_A." in name or name.startswith("lora_A."):
        return _padded(factor.reshape(experts, -1, factor.shape[1]), rank).reshape(experts * rank, factor.shape[1])
    return _padded(factor.reshape(factor.shape[0], -1, experts), rank).reshape(factor.shape[0], rank * experts)


def _padded(factor: Tensor, rank: int) -> Tensor:
    padded = factor.new_zeros(factor.shape[0], rank, factor.shape[2])
    padded[:, : factor.shape[1]] = factor
    return padded


def _swapped(weight: ProjectionWeight) -> bool:
    """Whether PEFT takes the outputs of a parameter for its inputs."""
    return weight.transposed != weight.says_transposed
