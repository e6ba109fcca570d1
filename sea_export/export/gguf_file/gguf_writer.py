"""Writes the files of a GGUF model with some tensors edited, in one pass over the files of the base.

The bytes of the base go through a few small buffers into the copy. Those of an edited tensor are replaced on the way.
So the peak memory is that of one stored tensor and of one matrix of it in float32, whatever the size of the model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from gguf import GGMLQuantizationType
from torch import Tensor

from sea_export.errors import SeaExportError
from sea_export.export.gguf_file.encoding import GgufEdit, edited_matrices, encode
from sea_export.export.streaming import FileCopy
from sea_export.export.write_report import WriteReport
from sea_export.model.gguf_header import GgufEntry, GgufHeader, GgufTensor, encode_header
from sea_export.model.gguf_parts import GgufPart

__all__ = ["GgufChanges", "WrittenPart", "changed_header", "write_gguf", "write_part"]


@dataclass(frozen=True)
class GgufChanges:
    """What is changed in a model."""

    edits: Mapping[str, GgufEdit]
    """What is done to tensors, by their names."""
    additions: Mapping[str, Tensor] = field(default_factory=dict)
    """New tensors in float32, by their names. They follow the tensors of the last part."""
    entries: Sequence[GgufEntry] = ()
    """New entries of the metadata of the first part, and such that replace those of the same key."""


@dataclass(frozen=True)
class WrittenPart:
    """One written file.

    Attributes:
        base_digest: SHA-256 of the base's file, in hexadecimal.
        digest: SHA-256 of the written file.
        edited: for each edited tensor of the file, whether the edit changed its values.
    """

    base_digest: str
    digest: str
    edited: Mapping[str, bool]


def changed_header(parts: Sequence[GgufPart], index: int, changes: GgufChanges) -> GgufHeader:
    """The header of a file as it is to be written, without the places of its tensors; its own if nothing in it changes.

    Args:
        parts: all files of the base.
        index: the position of the file among them.
        changes: what is changed in the model.
    """
    header = parts[index].header
    new = {entry.key: entry for entry in changes.entries} if index == 0 else {}
    additions = changes.additions if index == len(parts) - 1 else {}
    if not new and not additions and not any(one.name in changes.edits for one in header.tensors):
        return header
    known = [new.pop(entry.key, entry) for entry in header.entries]
    tensors = [
        GgufTensor(one.name, one.shape, changes.edits[one.name].type if one.name in changes.edits else one.type)
        for one in header.tensors
    ]
    f32 = GGMLQuantizationType.F32
    tensors += [GgufTensor(name, tuple(values.shape), f32) for name, values in additions.items()]
    return replace(header, entries=(*known, *new.values()), tensors=tuple(tensors))


def write_gguf(
    parts: Sequence[GgufPart],
    destination: Path,
    changes: GgufChanges,
    progress: Callable[[int], None] | None = None,
) -> WriteReport:
    """Copies all files of a model with some tensors edited and some added.

    Args:
        parts: the files of the base.
        destination: an existing, empty directory.
        changes: what is changed in the model.
        progress: called with the number of bytes written since the last call.

    Raises:
        InputError: the base has values that are not finite.
        SeaExportError: the edited values are not finite, no value changed, or a file changed while it was read.
        OSError: a file could not be written.
    """
    written = {
        part.path.name: write_part(parts, index, destination, changes, progress) for index, part in enumerate(parts)
    }
    edited = {name: differs for file in written.values() for name, differs in file.edited.items()}
    if not any(edited.values()) and not changes.additions:
        raise SeaExportError(
            f"{parts[0].path.name}: the edit changes nothing in it, because all its tensors have the values of the "
            "base after the fold. Fit a stronger edit, for example with a higher --explained-variance."
        )
    return WriteReport(
        base_digests={name: file.base_digest for name, file in written.items()},
        digests={name: file.digest for name, file in written.items()},
        edited=tuple(name for name, differs in edited.items() if differs),
        unchanged=tuple(name for name, differs in edited.items() if not differs),
        added=tuple(changes.additions),
    )


def write_part(
    parts: Sequence[GgufPart],
    index: int,
    destination: Path,
    changes: GgufChanges,
    progress: Callable[[int], None] | None = None,
) -> WrittenPart:
    """Copies one file of a model with some tensors edited and some added. All other bytes are the base's.

    Args:
        parts: all files of the base.
        index: the position of the file among them.
        destination: an existing directory, which has no file of that name.
        changes: what is changed in the model.
        progress: called with the number of bytes written since the last call.

    Raises:
        InputError: the base has values that are not finite.
        SeaExportError: the edited values are not finite, or the file changed while it was read.
        OSError: the file could not be written.
    """
    part, written = parts[index], changed_header(parts, index, changes)
    header, edited = part.header, {}
    with FileCopy(part.path, destination / part.path.name, progress=progress or (lambda count: None)) as copy:
        if written is not header:
            copy.take(min(header.data_start, copy.size))
            data = encode_header(written.version, written.entries, written.tensors, written.alignment)
            copy.put(memoryview(data))
        added = written.tensors[len(header.tensors) :]
        for tensor in header.tensors:
            copy.copy(tensor.start - copy.position)
            if tensor.name in changes.edits:
                edited[tensor.name] = _rewrite(header, tensor, copy, changes.edits[tensor.name])
            elif added and tensor is header.tensors[-1]:
                copy.copy(tensor.nbytes)
                _take_padding(header, tensor, copy)
                copy.put(memoryview(bytes(header.padding(tensor.nbytes))))
        for tensor in added:
            values = encode(changes.additions[tensor.name], tensor.type)
            copy.put(values.data)
            copy.put(memoryview(bytes(header.padding(len(values)))))
        copy.copy_rest()
        return WrittenPart(*copy.digests(), edited)


def _rewrite(header: GgufHeader, tensor: GgufTensor, copy: FileCopy, edit: GgufEdit) -> bool:
    """Writes the edited tensor instead of the stored one, which is next in the source. Returns whether it changed."""
    stored = copy.take(tensor.nbytes).numpy()
    _take_padding(header, tensor, copy)
    changed, count = False, 0
    for one in edited_matrices(tensor, stored, edit):
        changed = changed or not bool((one.values == one.folded).all())
        copy.put(one.data.data)
        count += len(one.data)
    copy.put(memoryview(bytes(header.padding(count))))
    return changed


def _take_padding(header: GgufHeader, tensor: GgufTensor, copy: FileCopy) -> None:
    """Reads the padding after a tensor. A file may lack that of its last one."""
    copy.take(min(header.padding(tensor.nbytes), copy.size - copy.position))
