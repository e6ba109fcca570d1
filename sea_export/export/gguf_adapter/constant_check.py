"""Whether llama.cpp can add the constant of an edit: to the residual stream, after a layer from 1 on.

A control vector is added to what a layer gives. An edit adds its constant to what the MLP or the attention gives. See
`sea_export.export.stream_sums` for where both are the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sea_export.export.stream_sums import LARGEST_SUM_ERROR, sum_errors
from sea_export.model.architecture import OutputProjection
from sea_export.model.constant_place import NoPlaceForConstantError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["check_constants"]


def check_constants(model: PreTrainedModel, projections: Sequence[OutputProjection]) -> None:
    """Checks that control vectors can hold the constants that an edit adds to outputs.

    Args:
        model: the model's skeleton, which stays as it is.
        projections: where the constants are added.

    Raises:
        InputError: they cannot. The message names the layer or the module.
    """
    for projection in projections:
        if projection.target.layer == 0:
            raise NoPlaceForConstantError(
                projection.target,
                "llama.cpp adds control vectors to layers from 1 on, and the edit needs a constant in layer 0",
                _ways_out(projection),
            )
    for projection, error in sum_errors(model, projections):
        if not error <= LARGEST_SUM_ERROR:
            raise NoPlaceForConstantError(
                projection.module_name,
                f"what it gives is read by another block or changed by a norm or a factor on its way out of layer "
                f"{projection.target.layer} (relative error {error:.1e}), so that no control vector of llama.cpp can "
                "hold the constant of the edit",
                _ways_out(projection),
            )


def _ways_out(projection: OutputProjection) -> str:
    """What to choose where a constant has no place. A bias of the base makes one of every edit."""
    has_bias = any(weight.bias is not None for weight in projection.weights)
    return f"{'' if has_bias else '--center linear, '}other --layers or --target, or another --format"
