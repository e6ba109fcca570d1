"""Edits of known low rank, for the hidden size of the tiny models."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch

from sea_export.edit.layer_edit import LayerEdit
from sea_export.edit.low_rank import low_rank_edit
from sea_export.edit.spectral_edit import SpectralEdit
from sea_export.model.targets import Target
from tests.helpers.tiny_edits import SIZE, layer_edit


def low_rank(
    targets: Iterable[Target], rank: int, *, size: int = SIZE, scale: float = 0.3, constant: bool = False
) -> SpectralEdit:
    """An edit that adds a random map of a rank to each target, and a constant if asked."""
    generator = torch.Generator().manual_seed(rank)
    nothing = torch.zeros(size, 0)
    layers = {}
    for target in targets:
        left = torch.linalg.qr(torch.randn(size, rank, generator=generator)).Q
        right = torch.linalg.qr(torch.randn(size, rank, generator=generator)).Q.T
        layers[target] = (
            replace(
                layer_edit(),
                positive=nothing,
                negative=nothing,
                left=scale * left if rank else None,
                right=right.contiguous() if rank else None,
                shift=torch.randn(size, generator=generator) if constant else None,
                positive_values=torch.zeros(0),
                negative_values=torch.zeros(0),
            ),
        )
    return SpectralEdit(layers, provenance={"base": {"name": "org/tiny"}})


def matrix_of(edits: Iterable[LayerEdit]) -> torch.Tensor:
    """D of the product of edits h ↦ (I + D) h, (d, d) float64."""
    product = low_rank_edit(list(edits))
    identity = torch.eye(len(product.scale), dtype=torch.float64)
    return product.scale[:, None] * (product.identity * identity + product.left @ product.right) - identity
