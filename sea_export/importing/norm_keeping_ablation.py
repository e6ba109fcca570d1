"""Directions removed from weights whose rows keep their norms, as norm-preserving variants of abliteration do.

With W (out, in) a weight that writes into the residual stream, N the diagonal of the norms of its rows, V (out, k) an
orthonormal basis of the directions, and w the share that is removed:

    W' = N normalized((I - w V Vᵀ) N⁻¹ W)

where `normalized` gives each row the norm 1. With M the diagonal of the norms that it divides by, this is

    W' = M⁻¹ W - w M⁻¹ N V (Vᵀ N⁻¹ W),

rows that are scaled, and a product that is added: a change of a weight, exactly. Each feature of the output keeps the
norm of its row. What is written still has a little of the directions, because rows are scaled after the removal.

| variant | norm | stated in |
|---|---|---|
| heretic, `row_normalization = "full"` | of each row of W, as here, but cut to a LoRA of rank 3 | `Model.abliterate` in `src/heretic/model.py`, `full_normalization_lora_rank` in `config.py` |
| llm-abliteration, `modify_tensor_norm_preserved` | of each column of W, that is of what each input writes | `sharded_ablate.py`, which transposes W first |

The norms of columns need a scale of the input, (I - w V Vᵀ) W C with C a diagonal. That is neither a scale of rows nor of
low rank, so that no edit of this program holds it.
"""  # noqa: E501 - the rows of a table

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sea_export.edit.vector_edit import vector_layer_edit
from sea_export.edit.weight_change import WeightChange
from sea_export.errors import InputError
from sea_export.export.stored_layout import stored_layout
from sea_export.model.architecture import OutputProjection
from sea_export.model.base import Base
from sea_export.model.linear_modules import find_linear_weights

__all__ = ["norm_keeping_changes"]


def norm_keeping_changes(
    base: Base, projections: Sequence[OutputProjection], directions: Tensor, share: float
) -> dict[str, list[WeightChange]]:
    """The changes of the weights of output projections, by the names of their linear maps.

    Args:
        base: the model.
        projections: the output projections of blocks.
        directions: (d,) or (k, d) the directions.
        share: w.

    Raises:
        InputError: a direction is zero, the model is quantized, or it has experts whose weights are stored together.
    """
    basis = vector_layer_edit(directions, "ablate", share).negative.double()
    if base.is_quantized:
        raise InputError(
            f"{base.name}: it is quantized, and its rows have no norms that are stored. Give the unquantized model."
        )
    layout, changes = stored_layout(base.skeleton, base.checkpoint), {}
    for projection in projections:
        for weight in projection.weights:
            if weight.experts:
                raise InputError(
                    f"{weight.name}: it holds the weights of all experts, whose rows have norms of their own. Leave "
                    "--keep-norm out, or choose --site attention."
                )
        for weight in find_linear_weights(base.skeleton, [one.module for one in projection.weights]):
            stored = layout.find(weight.name, weight.output_dim).read(base.checkpoint).double()
            rows = stored if weight.output_dim == -2 else stored.T
            changes[weight.module] = [_change(rows, basis, share, projection.target.layer)]
    return changes


def _change(weight: Tensor, basis: Tensor, share: float, layer: int) -> WeightChange:
    """The change of one weight (out, in) in float64."""
    norms = weight.norm(dim=1, keepdim=True)
    units = torch.where(norms > 0, weight / norms, 0)
    along = basis.T @ units
    divisors = (units - share * basis @ along).norm(dim=1, keepdim=True)
    # A row that is zero stays so, and one that is all along the directions becomes zero.
    scale = torch.where(norms > 0, torch.where(divisors > 0, 1 / divisors, 0), 1)
    left = -share * torch.where(norms > 0, scale * norms, 0) * basis
    changed = scale * weight + left @ along - weight
    size = float(weight.norm())
    return WeightChange(
        left=left,
        right=along,
        scale=scale[:, 0],
        strength=1.0,
        layer=layer,
        relative_change=float(changed.norm()) / size if size > 0 else None,
    ).map_tensors(lambda tensor: tensor.float().contiguous())
