"""Which tensors of a merged output its edit gives again, to the last bit and on every processor."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sea_export.edit.fold import tensor_roundings
from sea_export.edit.spectral_edit import SpectralEdit
from sea_export.export.stored_projections import find_stored_projections
from sea_export.model.base import open_base
from sea_export.model.checkpoint import Checkpoint
from sea_export.model.location import ModelLocation
from sea_export.patches.patch_pieces import Fold

__all__ = ["Refolded", "refolded_tensors"]

_MOST_CORRECTED = 0.01
"""The largest share of the numbers of a tensor that may be stored beside a fold."""
_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True)
class Refolded:
    """A tensor that a fold gives again.

    Attributes:
        fold: the fold, without the names of its tensors in a patch.
        positions: of the numbers whose rounding depends on the processor: the bytes of their (n,) int64 positions in
            the flat tensor.
        values: the bytes of these numbers, in the stored dtype.
        count: n.
    """

    fold: Fold
    positions: bytes
    values: bytes
    count: int


def refolded_tensors(
    location: ModelLocation, output: Path, names: Collection[str], *, trust_remote_code: bool
) -> Iterator[tuple[str, Refolded]]:
    """The tensors of a merged output that the edit in it gives again, with their names.

    Args:
        location: where the base is.
        output: the output.
        names: the tensors that differ from the base's.
        trust_remote_code: whether code that comes with the base may run.

    Raises:
        InputError: the base is no model, or its output projections are not found.
        SeaExportError: a file changed while it was read.
    """
    edit, written = SpectralEdit.load(output), Checkpoint.open(output)
    with open_base(location, trust_remote_code=trust_remote_code) as base:
        stored = find_stored_projections(edit.targets, base, needs_bias=False)
        for projection in stored.projections:
            for weight in projection.weights:
                parameter = stored.parameters[weight.name]
                for part in (one for one in parameter.parts if one in names):
                    before, after = base.checkpoint.read(part), written.read(part)
                    lowest, highest = tensor_roundings(before, edit.layers[projection.target], parameter.output_dim)
                    tensor = base.checkpoint.tensors[part]
                    fold = Fold(tensor.stored_as, tensor.shape, projection.target, parameter.output_dim)
                    found = _corrected(fold, _bits(lowest), _bits(highest), after)
                    if found is not None:
                        yield part, found


def _corrected(fold: Fold, lowest: Tensor, highest: Tensor, written: Tensor) -> Refolded | None:
    bits = _bits(written)
    positions = ((lowest != highest) | (bits != lowest)).nonzero().reshape(-1)
    if len(positions) > _MOST_CORRECTED * len(bits):
        return None
    values = written.reshape(-1)[positions]
    return Refolded(fold, _bytes_of(positions), _bytes_of(values), len(positions))


def _bytes_of(tensor: Tensor) -> bytes:
    return bytes(tensor.contiguous().view(torch.uint8).numpy())


def _bits(tensor: Tensor) -> Tensor:
    """The bits of all numbers of a tensor, as integers: zeros of different sign differ."""
    return tensor.reshape(-1).view(_INTEGERS[tensor.itemsize])
