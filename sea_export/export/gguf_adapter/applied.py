"""What llama.cpp computes with the files of a GGUF adapter, computed by transformers on the base in memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from gguf import Keys
from torch import Tensor

from sea_export.edit.fold import with_parameters
from sea_export.export.gguf_adapter.llama_cpp_files import (
    CONTROL_VECTOR,
    LORA,
    directions_of,
    read_adapter_file,
    read_tensors,
)
from sea_export.export.gguf_file.tensor_names import tensor_namer
from sea_export.export.stream_sums import added_to_output
from sea_export.model.architecture import OutputProjection, decoder_layers

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["with_gguf_adapter"]


@contextmanager
def with_gguf_adapter(
    model: PreTrainedModel, projections: Sequence[OutputProjection], directory: Path
) -> Iterator[None]:
    """A context in which a model in memory computes what llama.cpp computes with an adapter.

    Args:
        model: the base, in float32.
        projections: the output projections of the edit's targets whose weights are in memory.
        directory: the adapter.

    Raises:
        InputError: a file of it is damaged.
    """
    layers = decoder_layers(model)[1]
    adapted = _adapted_weights(model, projections, directory, len(layers)) if (directory / LORA).exists() else {}
    directions = directions_of(read_tensors(directory, CONTROL_VECTOR)) if (directory / CONTROL_VECTOR).exists() else {}
    edited = {projection.target.layer for projection in projections}
    with with_parameters(model, adapted), ExitStack() as hooks:
        for layer in sorted(edited & directions.keys()):
            hooks.enter_context(added_to_output(layers[layer], directions[layer]))
        yield


def _adapted_weights(
    model: PreTrainedModel, projections: Sequence[OutputProjection], directory: Path, layers: int
) -> dict[str, Tensor]:
    header, factors = read_adapter_file(directory, LORA), read_tensors(directory, LORA)
    alpha = header.value(Keys.Adapter.LORA_ALPHA)
    assert isinstance(alpha, float)
    find = tensor_namer(header.value(Keys.General.ARCHITECTURE), LORA, layers)
    adapted = {}
    for weight in (weight for projection in projections for weight in projection.weights):
        name = find(weight.name)
        a, b = factors.get(f"{name}.lora_a"), factors.get(f"{name}.lora_b")
        if a is not None and b is not None:
            stored, change = model.get_parameter(weight.name), alpha / b.shape[-1] * (b @ a)
            adapted[weight.name] = stored + (change.mT if weight.transposed else change).to(stored)
    return adapted
