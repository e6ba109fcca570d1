"""Writes a checkpoint with some of its tensors edited, in one pass over the files of the base.

No model is loaded. The bytes of the base go through a few small buffers into the copy, and those of an edited tensor
are replaced on the way. So the peak memory is that of one stored tensor and its edited copy, whatever the size of the
model, and the time is about that of copying the files.
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event, Lock
from typing import Any

import torch

from sea_export.errors import InputError, SeaExportError
from sea_export.export.streaming import FileCopy
from sea_export.export.write_report import WriteReport
from sea_export.files.reading import read_json_object
from sea_export.model.checkpoint import Checkpoint
from sea_export.model.load_model import is_finite
from sea_export.model.safetensors_header import StoredTensor, encode_header, read_header
from sea_export.model.stored_dtypes import TORCH_NAMES, stored_name
from sea_export.text import dtype_name

__all__ = ["TensorEdit", "changed_files", "write_checkpoint"]

TensorEdit = Callable[[torch.Tensor], torch.Tensor]
"""Stored tensor -> edited tensor of the same shape and dtype. It must not change its argument."""

_FILES_AT_ONCE = min(4, os.cpu_count() or 1)
_FOLDABLE = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def write_checkpoint(
    base: Checkpoint,
    destination: Path,
    edits: Mapping[str, TensorEdit],
    *,
    requantized: Mapping[str, TensorEdit] | None = None,
    additions: Mapping[str, torch.Tensor] | None = None,
    config_changes: Mapping[str, object] | None = None,
    known_digests: Mapping[str, str] | None = None,
    progress: Callable[[int], None] | None = None,
) -> WriteReport:
    """Copies a checkpoint with some tensors edited and some added.

    Names, shapes and dtypes of tensors stay, and so does the division into shards. All other bytes are the base's.

    Args:
        base: the checkpoint to copy. It is only read.
        destination: an existing, empty directory.
        edits: the tensors to edit, by name, each with its edit.
        requantized: the same for the tensors of quantized weights, which need not hold floating-point numbers.
        additions: new tensors, by name. They are added to the end of the last weight file, and to the index.
        config_changes: new values for entries of config.json; `text_config.x` is the entry x of text_config.
        known_digests: SHA-256 of files of the base, in hexadecimal, by name, for those of which somebody has it and
            makes sure that they do not change. They are not computed again.
        progress: called with the number of bytes written since the last call.

    Raises:
        InputError: there is nothing to change, a tensor does not exist or cannot be edited (before any write), or its
            values are not finite.
        SeaExportError: an edit gave a wrong shape or dtype or values that are not finite, all edits together changed
            nothing, or a file of the base changed while it was read.
    """
    additions, requantized = additions or {}, requantized or {}
    _check(base, edits, requantized, additions)
    changed = changed_files(base, additions, config_changes or {})
    write = _Writer(base, destination, {**edits, **requantized}, additions, changed, known_digests or {}, progress)
    written = write.files((*base.weight_files, *base.side_files()))
    edited = {name: differs for file in written.values() for name, differs in file.edited.items()}
    if edited and not any(edited.values()) and not additions:
        raise SeaExportError(
            f"{base.directory.name}: the edit changes nothing in it, because all {len(edited)} edited tensors have the "
            "bytes of the base after rounding to its dtype. Fit a stronger edit, for example with a higher "
            "--explained-variance."
        )
    return WriteReport(
        base_digests={name: file.base_digest for name, file in written.items()},
        digests={name: file.digest for name, file in written.items()},
        edited=tuple(name for name, differs in edited.items() if differs),
        unchanged=tuple(name for name, differs in edited.items() if not differs),
        added=tuple(additions),
    )


def changed_files(
    base: Checkpoint, additions: Mapping[str, torch.Tensor], config_changes: Mapping[str, object]
) -> dict[str, memoryview]:
    """The contents of the files that are written anew, by name: the config and the index, if anything in them changes.

    Args:
        base: the checkpoint of the base.
        additions: see `write_checkpoint`.
        config_changes: see `write_checkpoint`.

    Raises:
        InputError: the config has no section in which an entry is to be set.
    """
    changed = {"config.json": _changed_config(base, config_changes)} if config_changes else {}
    if additions and base.index_file:
        changed[base.index_file] = _extended_index(base, additions)
    return changed


@dataclass(frozen=True)
class _WrittenFile:
    base_digest: str
    digest: str
    edited: Mapping[str, bool]
    """For each edited tensor of the file, whether its bytes differ from the base's."""


class _Stopped(Exception):
    """Another file failed, so this one is not needed."""


class _Writer:
    """Writes several files at a time, but edits one tensor at a time, to limit the memory."""

    def __init__(
        self,
        base: Checkpoint,
        destination: Path,
        edits: Mapping[str, TensorEdit],
        additions: Mapping[str, torch.Tensor],
        changed_files: Mapping[str, memoryview],
        known_digests: Mapping[str, str],
        progress: Callable[[int], None] | None,
    ) -> None:
        self._base = base
        self._destination = destination
        self._edits = edits
        self._additions = additions
        self._changed_files = changed_files
        self._known_digests = known_digests
        self._progress = progress
        self._reporting = Lock()
        self._editing = Lock()
        self._stop = Event()

    def files(self, names: Sequence[str]) -> dict[str, _WrittenFile]:
        """Writes some files in parallel. The first failure stops all of them."""
        with _single_threaded_arithmetic(), ThreadPoolExecutor(_FILES_AT_ONCE) as pool:
            try:
                futures = [pool.submit(self._file, name) for name in names]
                for future in as_completed(futures):
                    future.result()
            except BaseException:
                self._stop.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return {name: future.result() for name, future in zip(names, futures, strict=True)}

    def _file(self, name: str) -> _WrittenFile:
        source, target = self._base.directory / name, self._destination / name
        edited: dict[str, bool] = {}
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            known = self._known_digests.get(name)
            with FileCopy(source, target, progress=self._report, known=known) as copy:
                if name in self._changed_files:
                    copy.take(copy.size)
                    copy.put(self._changed_files[name])
                elif name in self._base.weight_files:
                    edited = self._weights(name, copy)
                copy.copy_rest()
                return _WrittenFile(*copy.digests(), edited)
        except OSError as error:
            raise SeaExportError(f"{name}: it could not be copied to {self._destination}: {error.strerror}.") from error

    def _weights(self, name: str, copy: FileCopy) -> dict[str, bool]:
        additions = self._additions if name == self._base.weight_files[-1] else {}
        if additions:
            header = read_header(self._base.directory / name)
            copy.take(header.data_start)
            copy.put(memoryview(encode_header(replace(header, tensors=header.tensors + _placed(additions, copy)))))
        edited = {}
        tensors = [tensor for tensor in self._base.tensors.values() if tensor.file == name]
        for tensor in sorted(tensors, key=lambda tensor: tensor.start):
            if tensor.name in self._edits:
                copy.copy(tensor.start - copy.position)
                with self._editing:
                    edited[tensor.name] = _rewrite(tensor, copy, self._edits[tensor.name])
        copy.copy_rest()
        for addition in additions.values():
            copy.put(_bytes_of(addition).numpy().data)
        return edited

    def _report(self, count: int) -> None:
        if self._stop.is_set():
            raise _Stopped
        if self._progress is not None:
            with self._reporting:
                self._progress(count)


@contextmanager
def _single_threaded_arithmetic() -> Iterator[None]:
    """A context in which torch uses one thread. Edits are short, and the other cores compute digests at that time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _rewrite(tensor: StoredTensor, copy: FileCopy, edit: TensorEdit) -> bool:
    """Writes the edited tensor instead of the stored one, which is next in the source. Returns whether they differ."""
    stored = copy.take(tensor.end - tensor.start)
    result = _edit(tensor, stored.view(tensor.dtype).reshape(tensor.shape), edit)
    data = _bytes_of(result)
    copy.put(data.numpy().data)
    return not torch.equal(data, stored)


def _edit(tensor: StoredTensor, stored: torch.Tensor, edit: TensorEdit) -> torch.Tensor:
    if not is_finite(stored):
        raise InputError(
            f"{tensor.name}: the base has values in it that are infinite or not numbers. Download the base again."
        )
    with torch.no_grad():
        result = edit(stored)
    if result.shape != tensor.shape or result.dtype != tensor.dtype:
        raise SeaExportError(
            f"{tensor.name}: its edit gave {dtype_name(result.dtype)} of shape {tuple(result.shape)}, and the "
            f"checkpoint holds {dtype_name(tensor.dtype)} of shape {tensor.shape}."
        )
    if not is_finite(result):
        raise SeaExportError(
            f"{tensor.name}: with the edit folded in it has values that are not finite in {dtype_name(tensor.dtype)} "
            f"(the largest is {torch.finfo(tensor.dtype).max:g}). Lower --strength, choose another --normalization, or "
            "choose --format adapter or custom-code."
        )
    return result


def _bytes_of(tensor: torch.Tensor) -> torch.Tensor:
    """The bytes of a tensor, (bytes,) uint8."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def _placed(additions: Mapping[str, torch.Tensor], copy: FileCopy) -> tuple[StoredTensor, ...]:
    """The positions of the new tensors, as offsets in the old file: one after another, from its end on."""
    placed = []
    position = copy.size
    for name, tensor in additions.items():
        placed.append(
            StoredTensor(name, stored_name(tensor.dtype), tuple(tensor.shape), "", position, position + tensor.nbytes)
        )
        position += tensor.nbytes
    return tuple(placed)


def _check(
    base: Checkpoint,
    edits: Mapping[str, TensorEdit],
    requantized: Mapping[str, TensorEdit],
    additions: Mapping[str, torch.Tensor],
) -> None:
    """Raises for everything that can be found to be wrong before anything is written."""
    if not edits and not requantized and not additions:
        raise InputError(f"{base.directory}: the edit names none of its tensors, so it would change nothing.")
    for name in (*edits, *requantized):
        if name not in base.tensors:
            raise InputError(f"{base.directory}: it holds no tensor {name}, which is to be edited.")
        if name in edits and base.tensors[name].dtype not in _FOLDABLE:
            raise InputError(
                f"{name}: it is stored as {dtype_name(base.tensors[name].dtype)}, so the base is quantized, and no "
                "edit can be merged into it. Choose --format adapter or custom-code, or --dequantize."
            )
    for name, tensor in additions.items():
        if name in base.tensors:
            raise InputError(f"{base.directory}: it already holds a tensor {name}, which is to be added.")
        if dtype_name(tensor.dtype) not in TORCH_NAMES.values() or not is_finite(tensor):
            raise SeaExportError(
                f"{name}: this new tensor has values that are not finite, or a dtype that cannot be stored."
            )


def _changed_config(base: Checkpoint, changes: Mapping[str, object]) -> memoryview:
    """The bytes of config.json with changed entries, and its keys in their old order."""
    config = copy.deepcopy(dict(base.config))
    for key, value in changes.items():
        *sections, entry = key.split(".")
        part: Any = config
        for section in sections:
            part = part.get(section)
            if not isinstance(part, dict):
                raise InputError(
                    f"{base.directory / 'config.json'}: it has no section {section}, in which {key} is to be set."
                )
        part[entry] = value
    return _encoded(config)


def _extended_index(base: Checkpoint, additions: Mapping[str, torch.Tensor]) -> memoryview:
    """The bytes of the index with the new tensors, which are in the last weight file."""
    index = read_json_object(base.directory / str(base.index_file))
    index["weight_map"] |= dict.fromkeys(additions, base.weight_files[-1])
    metadata = index.get("metadata")
    if isinstance(metadata, dict) and isinstance(metadata.get("total_size"), int):
        metadata["total_size"] += sum(tensor.nbytes for tensor in additions.values())
    return _encoded(index)


def _encoded(contents: dict[str, Any]) -> memoryview:
    return memoryview((json.dumps(contents, indent=2, ensure_ascii=False) + "\n").encode())
