"""Checks whether a merged checkpoint is the base with the edit folded in, and nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sea_export.edit.fold import fold_parameters, with_parameters
from sea_export.edit.spectral_edit import SpectralEdit
from sea_export.edit.weight_fold import fold_changes
from sea_export.export.formats import SIDE_FILES_OF_CONVERTED, StorageError, TensorCheck
from sea_export.export.merged.merge_plan import MergePlan
from sea_export.export.merged.merge_writer import changed_files
from sea_export.model.architecture import OutputProjection
from sea_export.model.checkpoint import Checkpoint
from sea_export.model.diff import CheckpointDifference, compare_checkpoints, same_layout
from sea_export.model.linear_modules import find_linear_weights

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["check_merge", "with_folded_weights", "with_moved_weights"]

_LEAST_KEPT = 0.5
"""The least share of the change of requantized weights that has to be left on average."""


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
    for weight in find_linear_weights(model, edit.weight_changes):
        folded[weight.name] = fold_changes(
            parameters[weight.name], edit.weight_changes[weight.module], weight.output_dim
        )
    with with_parameters(model, folded):
        yield


@contextmanager
def with_moved_weights(
    model: PreTrainedModel, projections: Sequence[OutputProjection], plan: MergePlan
) -> Iterator[None]:
    """A context in which requantized weights of the unedited base move at random within what their storage rounds.

    Args:
        model: the base, in float32.
        projections: those whose weights move.
        plan: the tensors that are requantized.
    """
    own = {weight.name for projection in projections for weight in projection.weights}
    generator = torch.Generator().manual_seed(min((one.target.layer for one in projections), default=0))
    moved = {}
    for name, parameter in plan.parameters.items():
        if name not in own:
            continue
        change = parameter.joined([plan.requantized[part].noise(generator) for part in parameter.parts])
        moved[name] = model.get_parameter(name) + change
    with with_parameters(model, moved):
        yield


def check_merge(directory: Path, base: Checkpoint, plan: MergePlan, *, converted: bool = False) -> TensorCheck:
    """Checks that exactly the intended tensors differ from the base's, each by the fold alone.

    Args:
        directory: the merged checkpoint.
        base: the checkpoint of the base.
        plan: the tensors that it should hold.
        converted: whether the base was converted. Its other files depend on the version of transformers then, and are
            not compared.

    Raises:
        InputError: the directory is not a safetensors checkpoint.
    """
    written = Checkpoint.open(directory)
    difference = compare_checkpoints(base, written)
    problems = []
    unexpected = difference.tensors_changed.keys() - plan.edits.keys() - plan.requantized_tensors.keys()
    unexpected |= set(difference.tensors_only_in_b) - plan.additions.keys()
    unexpected |= {*difference.tensors_only_in_a, *difference.tensors_of_other_form}
    if unexpected:
        problems.append(f"tensors that the edit does not touch differ from the base: {', '.join(sorted(unexpected))}")
    requantized, wrongly_requantized = _requantized(written, base, plan)
    if wrong := [*_wrongly_folded(written, base, plan), *wrongly_requantized, *_wrongly_added(written, plan)]:
        problems.append(f"stored tensors are not the base's with the edit folded in: {', '.join(wrong)}")
    if moved := _of_other_layout(written, base, plan):
        problems.append(f"files hold their tensors in another order or with other metadata: {', '.join(moved)}")
    if not converted and (other := _other_files(written, base, plan, difference)):
        problems.append(f"files are not the base's: {', '.join(other)}")
    changed, added = len(difference.tensors_changed), len(difference.tensors_only_in_b)
    heads = sum(not name.endswith(".bias") for name in difference.tensors_only_in_b)
    new = [f"{added - heads} biases"] if added > heads else []
    biases = f" and {' and '.join([*new, *(['the head'] if heads else [])])} are added" if added else ""
    kept = _average(error.kept for error in requantized.values())
    if requantized and not kept >= _LEAST_KEPT:
        problems.append(
            f"its storage rounds most of the edit away: {kept:.0%} of the change of requantized weights is left, and "
            "only a larger --strength, --dequantize or another --format keeps more"
        )
    return TensorCheck(
        problems=tuple(problems),
        statement=f"{changed} tensors differ from the base's{biases}, by the fold alone, to the last bit; "
        f"{difference.tensors_identical} tensors and {difference.files_identical} other files are byte-identical."
        + _about_storage(plan, requantized),
        changed_tensors=changed + added,
        identical_tensors=difference.tensors_identical,
        identical_files=difference.files_identical,
        unchecked=(SIDE_FILES_OF_CONVERTED,) if converted else (),
        storage=_storage(plan),
        storage_errors=requantized,
    )


def _requantized(
    written: Checkpoint, base: Checkpoint, plan: MergePlan
) -> tuple[dict[str, StorageError], tuple[str, ...]]:
    """What the storage does to each requantized weight, and the stored tensors that are not as planned."""
    errors, wrong = {}, []
    for name, fold in plan.requantized.items():
        other_form = [one for one in fold.tensor_edits() if not _has_form_of(one, written, base)]
        if other_form:
            wrong += other_form
            continue
        found = fold.check(written)
        errors[name] = found.error
        wrong += found.wrong
    return errors, tuple(wrong)


def _average(values: Iterable[float]) -> float:
    listed = list(values)
    return sum(listed) / len(listed) if listed else 0.0


def _storage(plan: MergePlan) -> str | None:
    """What the storage of the requantized weights is called. A checkpoint has only one."""
    return next((fold.weight.storage for fold in plan.requantized.values()), None)


def _about_storage(plan: MergePlan, errors: Mapping[str, StorageError]) -> str:
    """A sentence about what requantization does to the edit; nothing where no weight is requantized."""
    if not errors:
        return ""
    error, own, kept = (
        _average(getattr(one, name) for one in errors.values()) for name in ("error", "own_rounding", "kept")
    )
    return (
        f" {len(errors)} edited weights are requantized ({_storage(plan)}): rounding moves them by {error:.2%} of "
        f"their norm, about {own:.2%} of it in the base, and keeps {kept:.1%} of the edit's change."
    )


def _wrongly_folded(written: Checkpoint, base: Checkpoint, plan: MergePlan) -> Iterator[str]:
    """The edited tensors that are not what the fold gives on any processor."""
    for name, fold in plan.edits.items():
        if not _has_form_of(name, written, base):
            yield name
            continue
        lowest, highest = fold.roundings(base.read(name))
        tensor = written.read(name)
        if not bool(((lowest <= tensor) & (tensor <= highest)).all()):  # false for values that are not numbers
            yield name


def _has_form_of(name: str, written: Checkpoint, base: Checkpoint) -> bool:
    """Whether a tensor is in the written checkpoint, with the dtype and shape that the base has."""
    if name not in written.tensors:
        return False
    found, stored = written.tensors[name], base.tensors[name]
    return (found.shape, found.dtype) == (stored.shape, stored.dtype)


def _wrongly_added(written: Checkpoint, plan: MergePlan) -> Iterator[str]:
    for name, expected in plan.additions.items():
        if name not in written.tensors:
            yield name
            continue
        tensor = written.read(name)
        if tensor.dtype != expected.dtype or not torch.equal(tensor, expected):
            yield name


def _of_other_layout(written: Checkpoint, base: Checkpoint, plan: MergePlan) -> list[str]:
    """The weight files whose headers differ from the base's in more than the new tensors, and missing or extra ones."""
    common = set(base.weight_files).intersection(written.weight_files)
    return [
        file
        for file in sorted({*base.weight_files, *written.weight_files})
        if file not in common
        or not same_layout(base.directory / file, written.directory / file, besides=plan.additions)
    ]


def _other_files(written: Checkpoint, base: Checkpoint, plan: MergePlan, difference: CheckpointDifference) -> list[str]:
    """The side files of the base that are missing, or have other contents than the plan says."""
    changed = changed_files(base, plan.additions, plan.config_changes)
    wrong = {file for file, contents in changed.items() if not _holds(written.directory / file, contents)}
    return sorted(difference.not_kept({*base.side_files()} - changed.keys()) | wrong)


def _holds(path: Path, contents: memoryview) -> bool:
    return path.is_file() and path.stat().st_size == len(contents) and path.read_bytes() == contents
