"""Whether a model is in memory as a whole, or a layer at a time, where nobody has said which."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from sea_export.layer_loading import can_load_layers
from sea_export.memory import fits, weight_bytes

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from sea_export.base_model import BaseModel

__all__ = ["fits_whole", "verified_by_layer"]


def fits_whole(base: BaseModel, dtype: torch.dtype | None, device: torch.device) -> bool:
    """Whether a base as a whole fits into the memory of a device.

    Args:
        base: the resolved base.
        dtype: what to compute in; None for the dtype in which it is stored.
        device: where it computes.
    """
    return fits(weight_bytes(base.checkpoint, dtype), device)


def verified_by_layer(base: BaseModel, config: PretrainedConfig, device: torch.device, held: int) -> bool:
    """Whether an export is verified with a layer at a time in memory: twice in float32, the whole does not fit there.

    Args:
        base: the resolved base.
        config: its config.
        device: where it computes.
        held: bytes that it takes there already.
    """
    # Once here, and once in the process that knows nothing of sea-export.
    needed = 2 * weight_bytes(base.checkpoint, torch.float32)
    return can_load_layers(config) and not fits(needed - held, device)
