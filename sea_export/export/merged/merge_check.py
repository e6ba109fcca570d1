"""Checks whether a merged checkpoint is the base with the edit folded in, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sea_export.edit.fold import fold_parameters, wider_dtype, with_parameters
from sea_export.edit.spectral_edit import SpectralEdit
from sea_export.errors import InputError
from sea_export.export.formats import TensorCheck
from sea_export.export.merged.merge_plan import MergePlan
from sea_export.export.merged.merge_writer import changed_config
from sea_export.model.architecture import OutputProjection
from sea_export.model.checkpoint import Checkpoint
from sea_export.model.diff import compare_checkpoints
from sea_export.model.load_model import is_finite

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["check_config_of_merge", "check_merge", "with_folded_weights"]


@contextmanager
def with_folded_weights(
    model: PreTrainedModel, edit: SpectralEdit, projections: Sequence[OutputProjection]
) -> Iterator[None]:
    """A context in which a model in memory has the folded weights, without rounding to the stored dtype.

    Args:
        model: the base, in float32.
        edit: a linear edit.
        projections: the output projections of its targets in the model.
    """
    parameters = dict(model.named_parameters())
    folded: dict[str, Tensor] = {}
    for projection in projections:
        folded |= fold_parameters(projection, edit.layers[projection.target], parameters)
    with with_parameters(model, folded):
        yield


def check_merge(directory: Path, base: Checkpoint, plan: MergePlan) -> TensorCheck:
    """Checks that exactly the intended tensors differ from the base's, each only by the fold and one rounding.

    Args:
        directory: the merged checkpoint.
        base: the checkpoint of the base.
        plan: the tensors that it should hold.

    Raises:
        InputError: the directory is not a safetensors checkpoint.
    """
    written = Checkpoint.open(directory)
    difference = compare_checkpoints(base, written)
    problems = []
    unexpected = difference.tensors_changed.keys() - plan.edits.keys()
    unexpected |= set(difference.tensors_only_in_b) - plan.additions.keys()
    unexpected |= {*difference.tensors_only_in_a, *difference.tensors_of_other_form}
    if unexpected:
        problems.append(f"tensors that the edit does not touch differ from the base: {', '.join(sorted(unexpected))}")
    wrong = [
        name
        for name, expected in (
            *((name, fold(base.read(name))) for name, fold in plan.edits.items()),
            *plan.additions.items(),
        )
        if name not in written.tensors or not _equal_to_rounding(written.read(name), expected)
    ]
    if wrong:
        problems.append(f"stored tensors are not the base's with the edit folded in: {', '.join(wrong)}")
    changed = len(difference.tensors_changed) + len(difference.tensors_only_in_b)
    return TensorCheck(
        problems=tuple(problems),
        statement=f"{changed} tensors differ from the base's; {difference.tensors_identical} tensors and "
        f"{difference.files_identical} other files are byte-identical.",
        changed_tensors=changed,
        identical_tensors=difference.tensors_identical,
        identical_files=difference.files_identical,
    )


def check_config_of_merge(directory: Path, base: Checkpoint, plan: MergePlan) -> None:
    """Refuses a merged checkpoint with another config than its base: a library would build what that config says.

    Args:
        directory: the merged checkpoint.
        base: the checkpoint of the base.
        plan: the changes of the config that the edit needs.

    Raises:
        InputError: the config is another one, or the directory is not a safetensors checkpoint.
    """
    if Checkpoint.open(directory).config != changed_config(base, plan.config_changes):
        raise InputError(
            f"{directory / 'config.json'}: it is not the config of the base, so that another model would be loaded. "
            "Export the edit again."
        )


# The fold adds some hundred terms. Their rounding errors sum up to a few units in the last place of the largest term.
_PLACES_OF_A_SUM = 8


def _equal_to_rounding(written: Tensor, expected: Tensor) -> bool:
    """Whether two tensors are equal, apart from rounding on another processor.

    A value may differ by one unit in its last place. Where the terms of a sum cancel, it may differ by the rounding
    errors of the largest values, because the small result of a sum cannot be more exact than its terms.
    """
    if written.shape != expected.shape or written.dtype != expected.dtype:
        return False
    precision = torch.finfo(expected.dtype)
    if not is_finite(expected):  # no checkpoint can be made of such a base and edit
        return False
    largest = max(abs(bound.item()) for bound in expected.aminmax()) if expected.numel() else 0.0
    lost = _PLACES_OF_A_SUM * torch.finfo(wider_dtype(expected.dtype)).eps * largest
    return all(  # a piece at a time, to limit the memory for the copies in float64
        torch.allclose(mine.double(), theirs.double(), rtol=precision.eps, atol=max(lost, precision.tiny))
        for mine, theirs in zip(written.flatten().split(2**22), expected.flatten().split(2**22), strict=True)
    )
