"""The comparison of `sea_export.verification.compare` for a model of which only one layer at a time is in memory.

Four variants go through the layers together, so that the checkpoint is read once: the base in the stored dtype, and the
base, the run-time edit and the export in memory, all three in float32. The stored export runs in another process, which
knows nothing of sea-export, and in which transformers keeps on the disk what does not fit into memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sea_export.capture.lockstep import ForwardHook, HiddenStates, SuspendedPass, advance_together, stops_installed
from sea_export.capture.offloaded import StoredModel, can_load_layers
from sea_export.edit.spectral_edit import SpectralEdit
from sea_export.export.formats import BaseMoved, EditInMemory, Loading
from sea_export.model.architecture import OutputProjection
from sea_export.model.memory import fits, weight_bytes
from sea_export.model.precision import in_float32
from sea_export.verification.clean_process import CleanProcess
from sea_export.verification.compare import (
    Agreement,
    agreements,
    compared_logits,
    fixed_sequences,
    logits_in_subprocess,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from sea_export.model.base import Base

__all__ = ["compare_by_layer", "verified_by_layer"]

_DECODER = "decoder"
_ROUNDED, _UNEDITED, _RUN_TIME, _IN_MEMORY = "rounded", "unedited", "run-time", "in memory"


def compare_by_layer(
    directory: Path,
    edit: SpectralEdit,
    source: StoredModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    projections: Sequence[OutputProjection],
    export_in_memory: EditInMemory | None,
    loading: Loading | None,
    process: CleanProcess,
    exact: bool = True,
    base_moved: BaseMoved | None = None,
) -> dict[str, Agreement]:
    """Compares an export with the run-time edit. See `sea_export.verification.compare.compare`.

    Args:
        directory: the export.
        edit: the edit that it should hold.
        source: the base, computed in the dtype in which it is stored.
        tokenizer: the tokenizer of the base.
        projections: the output projections of the edit's targets in the base.
        export_in_memory: makes the base compute what the export computes, without rounding; None if the stored export
            rounds nothing, and is used itself.
        loading: how plain transformers loads the export; None if it does not.
        process: the one in which it does.
        exact: whether the export should be the edit, and not only an approximation of it.
        base_moved: see `compare`.

    Returns:
        What `compare` gives.

    Raises:
        SeaExportError: plain transformers cannot load the export, or its tokenizer is not the base's.
    """
    sequences = fixed_sequences(tokenizer)
    stored = None
    if loading is not None:
        stored = logits_in_subprocess(
            process,
            directory,
            sequences,
            tokenizer,
            loading=loading,
            dtype=torch.float32,
            threads=torch.get_num_threads(),
            # Enough for the largest part of the model, and for the next part while it is loaded. A GGUF file is
            # unpacked as a whole.
            memory=None if "gguf_file" in loading.arguments else 2 * source.largest_part_bytes(torch.float32),
        )()
    logits = _logits_by_layer(source, edit, projections, sequences, export_in_memory, base_moved)
    return agreements(
        run_time=logits[_RUN_TIME],
        in_memory=logits.get(_IN_MEMORY),
        stored=stored,
        unedited=logits[_UNEDITED],
        rounded=logits[_ROUNDED],
        exact=exact,
    )


@torch.no_grad()
def _logits_by_layer(
    source: StoredModel,
    edit: SpectralEdit,
    projections: Sequence[OutputProjection],
    sequences: Sequence[Sequence[int]],
    export_in_memory: EditInMemory | None,
    base_moved: BaseMoved | None,
) -> dict[str, Tensor]:
    """The compared logits of each variant of the base. All variants go through the layers together."""
    model: Any = source.model
    logits: dict[str, Tensor] = {}

    def run(variant: str) -> None:
        logits[variant] = compared_logits(model, sequences, in_one_batch=True)

    variants = [_ROUNDED, _UNEDITED, _RUN_TIME, *([_IN_MEMORY] if export_in_memory else [])]
    passes = {variant: SuspendedPass(partial(run, variant)) for variant in variants}

    def advance(module: nn.Module, one_layer: SpectralEdit | None = None) -> object:
        """Runs all variants up to the next layer, through `module`, whose parameters are in memory as stored."""
        own = [one for one in projections if one_layer is not None and one.target in one_layer.layers]

        def turns() -> Iterator[SuspendedPass]:
            if base_moved is None:
                yield passes[_ROUNDED]
            with in_float32(module):
                if base_moved is not None:
                    with base_moved(model, own):
                        yield passes[_ROUNDED]
                yield passes[_UNEDITED]
                with one_layer.apply(model, own) if one_layer else nullcontext():
                    yield passes[_RUN_TIME]
                if export_in_memory:
                    with export_in_memory(model, one_layer, own) if one_layer else nullcontext():
                        yield passes[_IN_MEMORY]

        return advance_together(turns())

    decoder = model.base_model
    states = HiddenStates(source.layer_device, directory=None)
    stop_before_the_head: dict[object, tuple[nn.Module, ForwardHook]] = {
        _DECODER: (decoder, lambda module, inputs, output: output)
    }
    with ExitStack() as stack:
        for one in passes.values():
            stack.callback(one.close)
        stack.enter_context(stops_installed(model, states, stop_before_the_head))
        with source.embedding():
            stop = advance(model, edit.part(None))
        while isinstance(stop, int):
            with source.layer(stop):
                stop = advance(model, edit.part(stop))
        with source.head():
            advance(model, edit.part_of_head())
    return logits


def verified_by_layer(base: Base, device: torch.device, held: int) -> bool:
    """Whether an export is verified layer by layer, because the base does not fit twice into memory in float32.

    Args:
        base: the base.
        device: where it computes.
        held: the bytes that it already takes there.
    """
    # Once in this process, and once in the other process, which knows nothing of sea-export.
    needed = 2 * weight_bytes(base.checkpoint, torch.float32)
    return can_load_layers(base.config) and not fits(needed - held, device)
