"""The base of a command with its weights: in memory as a whole, or one decoder layer at a time."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from sea_export.capture.offloaded import StoredModel, can_load_layers
from sea_export.errors import InputError
from sea_export.model.base import Base
from sea_export.model.compute_dtype import compute_dtype
from sea_export.model.memory import fits, fits_whole, weight_bytes
from sea_export.model.precision import in_float32

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["OpenedModel"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class OpenedModel:
    """A base whose weights are loaded when they are first needed.

    Attributes:
        base: the base.
        dtype: what to compute in; None to choose it: see `sea_export.model.compute_dtype.compute_dtype`.
        device: where to compute.
        device_map: `auto` spreads the model over all devices; None has it on `device`.
        layerwise: whether one layer at a time is in memory; None chooses by how much memory there is.
        scratch: a directory for hidden states that do not fit into memory.
    """

    base: Base
    dtype: torch.dtype | None
    device: str
    device_map: str | None
    layerwise: bool | None
    scratch: Path

    @cached_property
    def model(self) -> PreTrainedModel | StoredModel:
        """The model in memory; a layer at a time, if that was asked for or if it does not fit as a whole."""
        if not self.is_layerwise:
            return self.base.load_model(dtype=self._computed, device=self.device, device_map=self.device_map)
        return StoredModel(self.base, dtype=self._computed, device=torch.device(self.device), scratch=self.scratch)

    @cached_property
    def is_layerwise(self) -> bool:
        """Whether one layer at a time is in memory."""
        if self.layerwise is not None:
            return self.layerwise
        layerwise = (
            self.device_map is None
            and can_load_layers(self.base.config)
            and not fits_whole(self.base, self._computed, torch.device(self.device))
        )
        if layerwise:
            logger.info("%s: it does not fit into memory, and is fitted layer by layer.", self.base.name)
        return layerwise

    @cached_property
    def _computed(self) -> torch.dtype | None:
        return self.dtype or compute_dtype(self.base, torch.device(self.device))

    @property
    def whole_model(self) -> PreTrainedModel:
        """The model, for what runs it from end to end.

        Raises:
            InputError: only a layer at a time is in memory.
        """
        if isinstance(self.model, StoredModel):
            raise InputError(
                f"{self.base.name}: it has to be in memory as a whole for this. Give --no-layerwise, or use a machine "
                "with more memory."
            )
        return self.model

    def in_full_precision(self) -> AbstractContextManager[None]:
        """On a CPU, a context in which the model is in float32, if that fits into memory. Otherwise as it is.

        For what needs the precision, whatever is fastest.
        """
        model = self.model
        if isinstance(model, StoredModel) or model.device.type != "cpu" or hasattr(model, "hf_quantizer"):
            return nullcontext()
        if not fits(weight_bytes(self.base.checkpoint, torch.float32), model.device):
            return nullcontext()
        return in_float32(model)
