"""Whether a direction is gone from the residual stream when it is removed from the output of every known writer.

Something else may write into the stream: an embedding of positions, a norm after a block or after the embedding, or a
block of another kind. That is tried out on random weights, so that no table of architectures has to be right about it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sea_export.edit.edited_layers import EditedLayers
from sea_export.edit.spectral_edit import SpectralEdit
from sea_export.edit.vector_edit import vector_layer_edit
from sea_export.errors import InputError
from sea_export.export.fold_check import example_inputs, run_module
from sea_export.export.stream_sums import layer_structure, with_usual_vectors
from sea_export.model.architecture import OutputProjection, decoder_layers, hidden_size
from sea_export.model.random_weights import with_random_weights

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["check_ablation"]

_TOLERANCE = 1e-4


@torch.inference_mode()
def check_ablation(model: PreTrainedModel, projections: Sequence[OutputProjection]) -> None:
    """Checks that nothing but the embedding and some blocks writes into the residual stream.

    Layers of equal structure are tried once, in the first of them.

    Args:
        model: the model's skeleton, which stays as it is.
        projections: the embedding, and all blocks of all decoder layers.

    Raises:
        InputError: something else writes into it. The message names the first place where that shows.
    """
    runnable = with_random_weights(model)
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(hidden_size(model.config), generator=generator)
    removal = vector_layer_edit(direction, "ablate", 1.0)
    edit = SpectralEdit(EditedLayers({projection.target: (removal,) for projection in projections}))
    list_name, layers = decoder_layers(runnable)
    structures = [layer_structure(layer) for layer in layers]
    firsts = [number for number, one in enumerate(structures) if structures.index(one) == number]
    for number in firsts:
        with_usual_vectors(layers[number], generator)
    with edit.apply(runnable, projections):
        for number in firsts:
            arguments, keywords = example_inputs(runnable, layers[number])
            if number == 0:
                _check(arguments[0] if arguments else keywords["hidden_states"], direction, "before the first layer")
            _check(run_module(layers[number], arguments, keywords), direction, f"after {list_name}.{number}")


def _check(stream: Tensor, direction: Tensor, place: str) -> None:
    left = float((stream @ direction).norm() / (stream.norm() * direction.norm()))
    if not left <= _TOLERANCE:
        raise InputError(
            f"--as: ablate removes a direction from what the embedding, the attention blocks and the MLPs give, and "
            f"{place} something of it would be left (relative size {left:.1e}): a norm follows one of them, or another "
            "module writes into the residual stream. Choose --site mlp or attention, to remove it from these alone."
        )
