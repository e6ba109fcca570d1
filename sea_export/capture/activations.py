"""What a capture gives: the activations of one target over the demonstrations."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

__all__ = ["Activations"]


@dataclass(frozen=True)
class Activations:
    """Activations of one target over n demonstrations. Row i of each kind belongs to demonstration i.

    The three tensors have the same shape and floating dtype (float32 from a capture). d is the hidden size. Which token
    of a span a row is read from, and at which module, is said by `sea_export.options.CaptureOptions`.
    """

    neutral: Tensor
    """(n, d) H0: of the prompt alone, or of the model's own continuation of it (`--neutral generated`)."""
    positive: Tensor
    """(n, d) H+: of the positive completion after the prompt."""
    negative: Tensor
    """(n, d) H-: of the negative completion after the prompt."""

    def centered(self) -> Activations:
        """The same activations without the means: each kind has its own mean over the demonstrations subtracted."""
        return Activations(*(rows - rows.mean(dim=0) for rows in (self.neutral, self.positive, self.negative)))
