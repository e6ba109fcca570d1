"""The rounding of a type alone: the base in memory with its own weights as an export would store them, unedited."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sea_export.edit.fold import with_parameters
from sea_export.export.gguf_file.encoding import encode
from sea_export.export.gguf_file.gguf_plan import GgufPlan
from sea_export.model.architecture import ProjectionWeight
from sea_export.model.gguf_values import decode, read_tensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["with_reencoded_weights"]


@contextmanager
def with_reencoded_weights(model: PreTrainedModel, plan: GgufPlan) -> Iterator[None]:
    """A context in which a model in memory has the weights of its file, encoded in the types of the export.

    Args:
        model: the base, in float32.
        plan: the export.
    """
    with with_parameters(model, {weight.name: _reencoded(model, weight, plan) for weight in plan.edited_weights}):
        yield


def _reencoded(model: PreTrainedModel, weight: ProjectionWeight, plan: GgufPlan) -> Tensor:
    tensor, parameter = plan.located.tensors[weight.name], model.get_parameter(weight.name)
    type = plan.changes.edits[tensor.name].type
    matrices = [decode(encode(one, type), one.shape, type) for one in read_tensor(plan.parts, tensor)]
    values = torch.stack(matrices) if len(tensor.shape) > 2 else matrices[0]
    return (values.mT if weight.transposed else values).to(parameter.device)
