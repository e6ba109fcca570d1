"""Estimates of the time and the memory that a job takes.

The time of a fit, its writing and its verification is the sum of these parts:

- imports: two processes start, and each imports transformers;
- computing: 2 floating-point operations per parameter and token (of experts, only those that a token is sent to), at
  the measured rate of a small decoder layer of the same dtype. The fit computes the tokens of the demonstrations up to
  the last edited layer. The verification computes about 400 tokens five times in float32, and 32 more steps that read
  all weights;
- spectra: the measured time of a smaller spectrum, scaled;
- files: the weights are read by the fit, written, and read three times by the verification, at the measured rate of the
  disk of the output.

Memory is the largest amount that weights (one layer at a time if the whole model does not fit), hidden states and
activations take at the same time, added to what the program itself takes.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psutil
import torch

from sea_export.doctor.speed import Speed, spectrum_seconds
from sea_export.model.architecture import decoder_layers, hidden_size
from sea_export.model.base import Base
from sea_export.model.memory import weight_bytes
from sea_export.model.threads import processors
from sea_export.verification.compare import PROMPTS, SEQUENCE_TOKENS
from sea_export.verification.compare_by_layer import verified_by_layer

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from sea_export.model.targets import Target

__all__ = ["Job", "active_parameters"]

_VERIFICATION_PASSES = 5
_VERIFICATION_READS = 3
# A model in memory takes this share of its weights in addition while it computes.
_OVERHEAD = 0.15


@dataclass(frozen=True)
class Job:
    """What a job computes and holds.

    Attributes:
        base: the base.
        targets: what is edited.
        demonstrations: their number.
        tokens: the number of tokens of all demonstrations.
        dtype: the dtype of the fit.
        device: where it computes.
        layerwise: whether the fit has one layer at a time in memory.
        center: one of `sea_export.options.CENTERS`.
    """

    base: Base
    targets: Sequence[Target]
    demonstrations: int
    tokens: int
    dtype: torch.dtype
    device: torch.device
    layerwise: bool
    center: str

    @property
    def size(self) -> int:
        """The hidden size d."""
        return hidden_size(self.base.config)

    def seconds(self, speed: Speed) -> float:
        """The time of the job without that of the writing."""
        model = self.base.skeleton
        in_layers = [active_parameters(layer, self.base.config) for layer in decoder_layers(model)[1]]
        fitted = sum(in_layers[: max(target.layer for target in self.targets) + 1])
        head = model.get_output_embeddings()
        everything = sum(in_layers) + (0 if head is None else sum(one.numel() for one in head.parameters()))
        verified = len(PROMPTS) * SEQUENCE_TOKENS
        stored = weight_bytes(self.base.checkpoint, None)
        starts = 1 if processors() > 1 else 2  # the process of the verification starts beside this one
        return (
            starts * speed.start
            + 2.0 * fitted * self.tokens / speed.batches
            + len(self.targets) * spectrum_seconds(self.demonstrations, self.size, self.center)
            + 2.0 * everything * verified * _VERIFICATION_PASSES / speed.single_texts
            + (1 + _VERIFICATION_READS) * stored / speed.disk
        )

    def memory(self) -> int:
        """The largest number of bytes at any time."""
        model = self.base.skeleton
        layers, embedding = decoder_layers(model)[1], model.get_input_embeddings()
        parts = [sum(one.numel() for one in part.parameters()) for part in (*layers, embedding)]
        activations = 3 * 4 * self.demonstrations * self.size * len(self.targets)
        if self.layerwise:
            states = 2 * self.tokens * self.size * self.dtype.itemsize
            fit = int(max(parts) * self.dtype.itemsize * (1 + _OVERHEAD)) + states
        else:
            fit = int(weight_bytes(self.base.checkpoint, self.dtype) * (1 + _OVERHEAD))
        by_layer = self.layerwise or verified_by_layer(self.base, self.device, 0)
        whole = 2 * weight_bytes(self.base.checkpoint, torch.float32)
        verification = int((max(parts) * 4 if by_layer else whole) * (1 + _OVERHEAD))
        program = psutil.Process(os.getpid()).memory_info().rss
        # The verification runs in a second process too.
        return program + max(fit + activations, program + verification)


def active_parameters(layer: torch.nn.Module, config: PretrainedConfig) -> float:
    """The number of parameters of a layer that compute with one token: of experts, only those it is sent to."""
    text: Any = config.get_text_config(decoder=True)
    names = ("num_local_experts", "num_experts", "n_routed_experts")
    experts = next((getattr(text, name) for name in names if getattr(text, name, None)), None)
    chosen = getattr(text, "num_experts_per_tok", None)
    share = chosen / experts if experts and chosen else 1.0
    return sum(one.numel() * (share if ".experts." in f".{name}" else 1.0) for name, one in layer.named_parameters())
