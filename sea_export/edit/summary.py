"""What is told about an edit: numbers of each layer, and warnings. No tensor and no torch is needed for it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sea_export.model.targets import Target

__all__ = ["LayerSummary", "WeightSummary", "broken_warning", "log_warnings", "no_op_warning", "sequence_warning"]

logger = logging.getLogger(__name__)

# An edit that changes no layer's neutral activations by more than this share does next to nothing.
_NO_OP_CHANGE = 0.01
# One that changes a layer's neutral activations by more than this many times their size leaves no model that speaks.
_BROKEN_CHANGE = 2.0


@dataclass(frozen=True)
class LayerSummary:
    """The numbers of the edit of one target."""

    target: Target
    positive_rank: int
    """The number of directions that P+ keeps."""
    negative_rank: int
    """The number of directions that P- drops."""
    map_rank: int | None
    """The rank of the linear map that is added, or None."""
    spectrum: int
    """The number of singular values of Ω+; 0 for an edit of another method than the spectral one."""
    first_share: float
    """The share of their squares that the first one has."""
    relative_change: float | None
    """‖edited H0 - H0‖ / ‖H0‖; None if it was not measured."""
    signature: float | None
    """The signature of the target; None if it was not measured."""
    reader_error: float | None
    """Held-out root mean square of uᵀh - 1, for `center="linear"`."""
    normalization: str
    """What is normalized at run time."""

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain JSON data."""
        return {**self.target._asdict(), **{name: one for name, one in asdict(self).items() if name != "target"}}


@dataclass(frozen=True)
class WeightSummary:
    """The numbers of a change of the weight of one linear map."""

    module: str
    """The name of the linear map in the model."""
    layer: int | None
    """Its decoder layer, counted from 0; None for the head."""
    rank: int
    """The rank of what is added to the weight."""
    scaled_rows: bool
    """Whether rows of the weight are scaled too (DoRA)."""
    strength: float
    """What the change is multiplied by."""
    relative_change: float | None
    """‖change of the weight‖ / ‖weight‖, Frobenius norms; None if it was not measured."""

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain JSON data."""
        return asdict(self)


def no_op_warning(layers: Sequence[LayerSummary]) -> str | None:
    """What to tell the user about an edit that changes next to nothing, or None for one that does something.

    Args:
        layers: those of the edit.
    """
    changes = [layer.relative_change for layer in layers if layer.relative_change is not None]
    if not layers or len(changes) < len(layers) or (change := max(changes)) >= _NO_OP_CHANGE:
        return None
    shares = [layer.first_share for layer in layers if layer.spectrum]
    if not shares:
        return (
            "the edit: it changes nothing, because the demonstrations' activations are all alike, or zero. Give other "
            "demonstrations."
        )
    return (
        f"the edit: it changes next to nothing, at most {change:.2%} of any layer's activations, and its first "
        f"direction alone explains up to {max(shares):.3%} of the spectrum. Raise --explained-variance above that, or "
        "centre the activations (--center linear)."
    )


def broken_warning(layers: Sequence[LayerSummary]) -> str | None:
    """What to tell the user about an edit that drowns what it edits, or None for another.

    Args:
        layers: those of the edit.
    """
    changes = [(layer.relative_change or 0.0, layer.target) for layer in layers]
    change, target = max(changes, default=(0.0, None))
    if change <= _BROKEN_CHANGE:
        return None
    return (
        f"the edit: it changes activations of {target} by {change:.1f} times their size. "
        "A model that is changed so much hardly speaks any more, and rounding alone can make its verification fail. "
        "Give a lower --strength."
    )


def sequence_warning(layers: Sequence[LayerSummary]) -> str | None:
    """What to tell the user about an edit with `--normalization sequence`, or None for another.

    Args:
        layers: those of the edit.
    """
    if all(layer.normalization != "sequence" for layer in layers):
        return None
    return (
        "--normalization: sequence takes norms over all tokens of a forward call, so that a token's edit depends on "
        "later tokens and on the batch, and generation with a cache differs from generation without. It is for "
        "reproducing published numbers. Choose token or calibrated for everything else."
    )


def log_warnings(layers: Sequence[LayerSummary]) -> None:
    """Warns of an edit that does nothing or far too much, and of one whose results depend on the batch.

    Args:
        layers: those of the edit.
    """
    for warning in (no_op_warning(layers), broken_warning(layers), sequence_warning(layers)):
        if warning:
            logger.warning("%s", warning)
