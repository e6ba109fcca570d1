"""Checks whether a GGUF export is the base with the edit folded in, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from gguf import GGUFValueType

from sea_export.export.formats import TensorCheck
from sea_export.export.gguf_file.encoding import EditedMatrix, GgufEdit, edited_matrices, encode
from sea_export.export.gguf_file.gguf_plan import GgufPlan
from sea_export.export.gguf_file.gguf_writer import changed_header
from sea_export.export.modelfile import MODELFILE, has_modelfile
from sea_export.model.gguf_diff import same_bytes
from sea_export.model.gguf_header import GgufEntry, GgufTensor, encode_header
from sea_export.model.gguf_parts import GgufPart, read_parts
from sea_export.model.gguf_values import decode, read_bytes

__all__ = ["check_gguf", "written_parts"]

_CHUNK_BYTES = 1 << 20


def written_parts(directory: Path, plan: GgufPlan) -> tuple[GgufPart, ...]:
    """The files of a written export with their headers.

    Args:
        directory: the export.
        plan: what it should hold.

    Raises:
        InputError: one of them is missing or broken.
    """
    return read_parts(directory / plan.parts[0].path.name)


def check_gguf(directory: Path, plan: GgufPlan) -> TensorCheck:
    """Checks that exactly the intended tensors and entries of the metadata differ from the base's.

    Args:
        directory: the export.
        plan: what it should hold.

    Raises:
        InputError: the export is not a GGUF file.
    """
    written = written_parts(directory, plan)
    if [part.path.name for part in written] != [part.path.name for part in plan.parts]:
        return _failed("the files are not named as the base's")
    headers = [part.path.name for index, part in enumerate(written) if not _has_header(plan, index, part)]
    if headers:
        return _failed(f"metadata or the list of tensors is not as planned: {', '.join(headers)}")
    longer = [part.path.name for part, base in zip(written, plan.parts, strict=True) if _rest(part) != _rest(base)]
    if longer:
        return _failed(f"files have other bytes after their tensors than the base's: {', '.join(longer)}")
    if not has_modelfile(directory, plan.modelfile):
        return _failed(f"{MODELFILE} is not as planned")
    wrong = [name for part, base in zip(written, plan.parts, strict=True) for name in _wrong_tensors(part, base, plan)]
    changes = plan.changes
    names = [tensor.name for part in written for tensor in part.header.tensors]
    changed = len(changes.edits)
    folded = f"{changed} tensors are the base's with the edit folded in and encoded, to the last bit" if changed else ""
    added = f"{len(changes.additions)} biases are added" if changes.additions else ""
    identical = len(names) - changed - len(changes.additions)
    return TensorCheck(
        problems=(f"stored tensors are not as planned: {', '.join(wrong)}",) if wrong else (),
        statement=f"{' and '.join(filter(None, (folded, added)))}; "
        f"{identical} tensors are byte-identical, and so is all metadata but {len(changes.entries)} entries, which "
        "name the base.",
        changed_tensors=changed + len(changes.additions),
        identical_tensors=identical,
        identical_files=0,
        storage=", ".join(sorted({edit.type.name for edit in changes.edits.values()})),
    )


def _failed(problem: str) -> TensorCheck:
    return TensorCheck((problem,), "", changed_tensors=0, identical_tensors=0, identical_files=0)


def _has_header(plan: GgufPlan, index: int, part: GgufPart) -> bool:
    """Whether the header of a written file is the planned one, byte by byte."""
    base, planned = plan.parts[index], changed_header(plan.parts, index, plan.changes)
    with open(part.path, "rb") as stream:
        stored = stream.read(part.header.data_start)
    if planned is base.header:
        with open(base.path, "rb") as stream:
            expected = stream.read(base.header.data_start)
    else:
        entries = [_as_told(entry, part, plan) for entry in planned.entries]
        expected = encode_header(planned.version, entries, planned.tensors, planned.alignment)
    return stored == expected


def _as_told(entry: GgufEntry, part: GgufPart, plan: GgufPlan) -> GgufEntry:
    """A planned entry, or the written one if it is a text about the base. Another version of the program tells other
    things of it."""
    told = next((one for one in part.header.entries if one.key == entry.key), entry)
    return told if entry in plan.changes.entries and told.type == entry.type == GGUFValueType.STRING else entry


def _rest(part: GgufPart) -> bytes:
    """What follows the last tensor of a file and its padding: nothing, in nearly all files."""
    last = part.header.tensors[-1:]
    end = last[0].start + last[0].nbytes if last else part.header.data_start
    with open(part.path, "rb") as stream:
        stream.seek(end + part.header.padding(end))
        return stream.read(_CHUNK_BYTES)


def _wrong_tensors(part: GgufPart, base: GgufPart, plan: GgufPlan) -> Iterator[str]:
    """The tensors of a written file that are not as planned."""
    stored = {tensor.name: tensor for tensor in base.header.tensors}
    for tensor in part.header.tensors:
        if tensor.name in plan.changes.additions:
            same = np.array_equal(
                read_bytes(part.path, tensor), encode(plan.changes.additions[tensor.name], tensor.type)
            )
        elif tensor.name in plan.changes.edits:
            edit = plan.changes.edits[tensor.name]
            same = _is_edited(read_bytes(part.path, tensor), base, stored[tensor.name], edit)
        else:
            same = same_bytes(part.path, tensor, base.path, stored[tensor.name])
        if not same:
            yield tensor.name


def _is_edited(written: np.ndarray, base: GgufPart, tensor: GgufTensor, edit: GgufEdit) -> bool:
    """Whether written bytes are those of the fold, as any processor computes it."""
    position = 0
    for one in edited_matrices(tensor, read_bytes(base.path, tensor), edit):
        piece = written[position : position + len(one.data)]
        position += len(one.data)
        if not np.array_equal(piece, one.data) and not _is_rounded(piece, one, edit):
            return False
    return position == len(written)


def _is_rounded(written: np.ndarray, matrix: EditedMatrix, edit: GgufEdit) -> bool:
    """Whether written bytes stand for numbers between those of the lowest and the highest result of the fold."""
    shape = matrix.values.shape
    ends = [decode(encode(end, edit.type), shape, edit.type) for end in edit.roundings(matrix.values)]
    values, own = decode(written, shape, edit.type), decode(matrix.data, shape, edit.type)
    lowest, highest = torch.minimum(ends[0], own), torch.maximum(ends[1], own)
    return bool(((lowest <= values) & (values <= highest)).all())  # false for values that are not numbers
