"""Config entries that add biases to a model's output projections, which plain transformers then loads."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from sea_export.model.architecture import OutputProjection
from sea_export.model.constant_place import NoPlaceForConstantError
from sea_export.model.load_model import skeleton
from sea_export.model.targets import COMPONENTS

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["BIAS_SWITCHES", "bias_switch"]

BIAS_SWITCHES = {"mlp": ("mlp_bias", "use_mlp_bias"), "attention": ("attention_bias",)}
"""Config entries that add biases to linear maps, by component, for the families that have them."""


def bias_switch(
    model: PreTrainedModel, projections: Sequence[OutputProjection], *, trust_remote_code: bool = False
) -> tuple[dict[str, bool], dict[str, Tensor]]:
    """The changes of a model's config that add biases to its output projections.

    Args:
        model: the model's skeleton.
        projections: the output projections that need a bias.
        trust_remote_code: whether code that comes with the model may run.

    Returns:
        The changed config entries, and all parameters that they add (on `meta`, by name). All of them are biases, and
        the biases of the output projections are among them.

    Raises:
        InputError: the architecture has no such config entry.
    """
    original = {name for name, _ in model.named_parameters()}
    switched = copy.deepcopy(model.config)
    changes: dict[str, bool] = {}
    for component in sorted({one.target.component for one in projections}, key=COMPONENTS.index):
        for switch in BIAS_SWITCHES[component]:
            if getattr(switched, switch, None) is False:
                setattr(switched, switch, True)
                changes[switch] = True
    with_biases = skeleton(switched, trust_remote_code=trust_remote_code)
    added = {name: tensor for name, tensor in with_biases.named_parameters() if name not in original}
    needed = {name for one in projections for weight in one.weights if (name := weight.bias_name) is not None}
    if not needed <= added.keys() or not all(name.endswith(".bias") for name in added):
        raise NoPlaceForConstantError(
            sorted(needed)[0],
            f"{model.config.model_type} has no config switch that adds this bias",
            "--center linear, or another --format",
        )
    return changes, dict(added)
