"""Biases by config: how a model whose writers have no bias can be given one that plain transformers reads."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from sea_export.errors import InputError
from sea_export.model.architecture import OutputProjection
from sea_export.model.load_model import skeleton
from sea_export.model.targets import COMPONENTS

if TYPE_CHECKING:
    from transformers import PretrainedConfig

__all__ = ["bias_switch"]

# Config switches that give a family's linear maps their biases.
_BIAS_SWITCHES = {"mlp": ("mlp_bias", "use_mlp_bias"), "attention": ("attention_bias",)}


def bias_switch(
    config: PretrainedConfig, writers: Sequence[OutputProjection]
) -> tuple[dict[str, bool], dict[str, Tensor]]:
    """How a model whose writers have no bias can be given one through its config.

    Args:
        config: the model's config.
        writers: the writers that need a bias.

    Returns:
        The config changes, and every parameter that appears with them (on `meta`, by name): all are biases, and
        those of the writers are among them.

    Raises:
        InputError: the architecture has no such switch.
    """
    original = {name for name, _ in skeleton(config).named_parameters()}
    switched = copy.deepcopy(config)
    changes: dict[str, bool] = {}
    for component in sorted({writer.target.component for writer in writers}, key=COMPONENTS.index):
        for switch in _BIAS_SWITCHES[component]:
            if getattr(switched, switch, None) is False:
                setattr(switched, switch, True)
                changes[switch] = True
    added = {name: tensor for name, tensor in skeleton(switched).named_parameters() if name not in original}
    needed = {name for writer in writers for weight in writer.weights if (name := weight.bias_name) is not None}
    if not needed <= added.keys() or not all(name.endswith(".bias") for name in added):
        raise InputError(
            f"{config.model_type} has no config switch that gives {sorted(needed)[0]} a place: "
            "choose --center linear, or another --format"
        )
    return changes, dict(added)
