"""The rounding of a type alone: the unedited base in memory, with some of its weights moved as their storage rounds."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from gguf import GGMLQuantizationType
from torch import Tensor

from sea_export.edit.fold import with_parameters
from sea_export.export.gguf_file.encoding import encode
from sea_export.export.gguf_file.gguf_plan import GgufPlan
from sea_export.model.architecture import OutputProjection, ProjectionWeight
from sea_export.model.gguf_values import decode, read_tensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["with_moved_weights"]

_JITTER = 0.1


@contextmanager
def with_moved_weights(
    model: PreTrainedModel, projections: Sequence[OutputProjection], plan: GgufPlan
) -> Iterator[None]:
    """A context in which weights of the unedited base are moved by what the types of an export round.

    Args:
        model: the base, in float32.
        projections: those whose weights move.
        plan: the export.
    """
    weights = [weight for projection in projections for weight in projection.weights if plan.changes_weight(weight)]
    with with_parameters(model, {weight.name: _moved(model, weight, plan) for weight in weights}):
        yield


def _moved(model: PreTrainedModel, weight: ProjectionWeight, plan: GgufPlan) -> Tensor:
    tensor, parameter = plan.located.tensors[weight.name], model.get_parameter(weight.name)
    type = plan.changes.edits[tensor.name].type
    generator = torch.Generator().manual_seed(zlib.crc32(tensor.name.encode()))
    matrices = [one + _rounding(one, type, generator) for one in read_tensor(plan.parts, tensor)]
    values = torch.stack(matrices) if len(tensor.shape) > 2 else matrices[0]
    return (values.mT if weight.transposed else values).to(parameter.device)


def _rounding(values: Tensor, type: GGMLQuantizationType, generator: torch.Generator) -> Tensor:
    """What a type rounds values of about this size by. Encoded in the type that they have, they would stay as they are;
    those of an edited weight are any numbers."""
    near = values * (1 + _JITTER * torch.randn(values.shape, generator=generator))
    return decode(encode(near, type), near.shape, type) - near
