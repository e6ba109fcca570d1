"""A safetensors checkpoint directory, read only: its tensors, where their bytes are, and the files beside."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from sea_export.errors import InputError, SeaExportError
from sea_export.safetensors_header import StoredTensor, read_header

__all__ = [
    "OTHER_FORMAT_FILES",
    "OTHER_FORMAT_FOLDERS",
    "Checkpoint",
    "StoredTensor",
    "files_to_copy",
]

CARD = "README.md"
"""The model card."""
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"

OTHER_FORMAT_FILES = (
    "pytorch_model*.bin",
    "pytorch_model*.bin.index.json",
    "tf_model*.h5",
    "tf_model*.h5.index.json",
    "flax_model*.msgpack",
    "flax_model*.msgpack.index.json",
    "rust_model.ot",
    "consolidated*.pth",
    "consolidated*.safetensors",
    "*.gguf",
)
"""Shell patterns of files that hold the weights in another form than safetensors for transformers."""

OTHER_FORMAT_FOLDERS = ("onnx", "openvino", "coreml", "original", "metal")
"""Folders in which publishers keep the weights in such a form."""

_FOLDERS_LEFT_OUT = (*OTHER_FORMAT_FOLDERS, ".git", ".cache", ".huggingface", "__pycache__", "sea_edit")
_FILES_WRITTEN_ANEW = (CARD, "sea_export.json")
# model.safetensors, model.fp16.safetensors, model-00001-of-00002.safetensors and the indices of such shards.
_WEIGHT_FILE_NAME = re.compile(r"model(\.\w+)?(-\d+-of-\d+)?(\.\w+)?\.safetensors(\.index\.json)?")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint directory as transformers would read it. Nothing here ever writes to it.

    Attributes:
        directory: the directory.
        tensors: every tensor that a load reaches, by name.
        weight_files: the safetensors files that hold them, in the order in which they are read.
        index_file: the index that names those files, None for a single-file checkpoint.
    """

    directory: Path
    tensors: Mapping[str, StoredTensor]
    weight_files: tuple[str, ...]
    index_file: str | None

    @classmethod
    def open(cls, directory: str | os.PathLike[str]) -> Checkpoint:
        """Read the headers of the checkpoint in `directory` and check that they tell the truth.

        The weights are looked for in transformers' own order: what config.json names as `transformers_weights`,
        else model.safetensors, else the shards of model.safetensors.index.json.

        Raises:
            InputError: there is no such checkpoint, a shard or a tensor is missing, or a header is not valid.
        """
        directory = Path(directory)
        index_file, weight_files, weight_map = _find_weights(directory)
        tensors: dict[str, StoredTensor] = {}
        for file in weight_files:
            for tensor in read_header(directory / file).tensors:
                if tensor.name in tensors:
                    raise InputError(
                        f"{directory}: both {tensors[tensor.name].file} and {file} hold the tensor "
                        f"{tensor.name}, and readers differ in which they take; remove one."
                    )
                tensors[tensor.name] = tensor
        for name, file in weight_map.items():
            if name not in tensors or tensors[name].file != file:
                raise InputError(
                    f"{directory}: {file} does not hold the tensor {name}, although {index_file} says so; "
                    "download the checkpoint again."
                )
        if not tensors:
            raise InputError(f"{directory}: {', '.join(weight_files)} holds no tensors.")
        return cls(directory, MappingProxyType(tensors), weight_files, index_file)

    def read(self, name: str) -> torch.Tensor:
        """A fresh tensor with the stored values, in the stored dtype and shape.

        Raises:
            InputError: the checkpoint holds no tensor of that name.
            SeaExportError: the file has become shorter since the checkpoint was opened.
        """
        if name not in self.tensors:
            raise InputError(f"{self.directory} holds no tensor {name}.")
        stored = self.tensors[name]
        data = torch.empty(stored.end - stored.start, dtype=torch.uint8)
        self.read_into(name, data.numpy().data)
        return data.view(stored.dtype).reshape(stored.shape)

    def read_into(self, name: str, buffer: memoryview) -> None:
        """Fills a buffer with the bytes of a tensor that is in `tensors`.

        Raises:
            SeaExportError: the file has become shorter since the checkpoint was opened.
        """
        stored = self.tensors[name]
        with open(self.directory / stored.file, "rb") as stream:
            stream.seek(stored.start)
            if stream.readinto(buffer) != stored.end - stored.start:
                raise SeaExportError(f"{self.directory / stored.file} changed while it was read.")

    @property
    def config(self) -> dict[str, Any]:
        """The contents of config.json.

        Raises:
            InputError: there is no config.json, or it is not a JSON object.
        """
        return _read_json_object(self.directory / "config.json")

    def side_files(self) -> tuple[str, ...]:
        """Every file but the weights that belongs to the model: config, index, tokenizer, code, extra heads.

        Returns:
            POSIX paths relative to the directory, sorted.
        """
        copied, _ = self._split_files()
        return tuple(file for file in copied if file not in self.weight_files)

    def left_out(self) -> tuple[str, ...]:
        """What an export must not copy: the unedited weights in another form (other frameworks' formats, shards
        that the index does not name), what it writes anew (README.md), and what is no part of a model (.git).

        Returns:
            POSIX paths relative to the directory, sorted; a folder left out as a whole ends in a slash.
        """
        _, left_out = self._split_files()
        return left_out

    def _split_files(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        in_use = {*self.weight_files, *([self.index_file] if self.index_file else [])}
        return files_to_copy(self.directory, in_use=in_use, tensor_names=self.tensors.keys())


def files_to_copy(
    directory: Path, *, in_use: Collection[str] = (), tensor_names: Collection[str] = ()
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Tell the files of a model directory that belong to a copy of the model from those that do not.

    Args:
        directory: the model directory; links to files and folders are followed.
        in_use: the weight files and the index that are read, which always belong.
        tensor_names: the tensors that are read. Another safetensors file that holds nothing but tensors of
            these names is a second copy of weights; one with other tensors is an extra head, and belongs.

    Returns:
        the files to copy, and what is left out; POSIX paths relative to `directory`, sorted, folders that are
        left out as a whole with a slash at the end.

    Raises:
        InputError: a link points nowhere, or there is something that is neither a file nor a folder.
    """
    copied: list[str] = []
    left_out: list[str] = []
    for path in _walk(directory, ancestors=frozenset()):
        file = path.relative_to(directory).as_posix()
        if path.is_dir():
            left_out.append(f"{file}/")
            continue
        belongs = file in in_use or not (
            file in _FILES_WRITTEN_ANEW
            or any(fnmatchcase(path.name, pattern) for pattern in OTHER_FORMAT_FILES)
            or _WEIGHT_FILE_NAME.fullmatch(file)
            or _holds_only(path, tensor_names)
        )
        (copied if belongs else left_out).append(file)
    return tuple(sorted(copied)), tuple(sorted(left_out))


def _walk(folder: Path, *, ancestors: frozenset[str]) -> Iterator[Path]:
    """Every file below `folder`, and every folder that is left out as a whole."""
    real = os.path.realpath(folder)
    if real in ancestors:
        raise InputError(f"{folder} is a link to a folder that contains it; remove it.")
    for path in folder.iterdir():
        if path.is_file() or (path.is_dir() and path.name in _FOLDERS_LEFT_OUT):
            yield path
        elif path.is_dir():
            yield from _walk(path, ancestors=ancestors | {real})
        else:
            raise InputError(f"{path} is no file that can be copied (perhaps a broken link); remove it.")


def _find_weights(directory: Path) -> tuple[str | None, tuple[str, ...], Mapping[str, str]]:
    """The index file if there is one, the weight files, and the index's map from tensor to file."""
    if not directory.is_dir():
        raise InputError(f"{directory} is not a directory.")
    config = directory / "config.json"
    named = _read_json_object(config).get("transformers_weights") if config.is_file() else None
    if named is None:
        named = WEIGHTS if (directory / WEIGHTS).is_file() else INDEX
        if not (directory / named).is_file():
            raise InputError(f"{directory} holds no safetensors checkpoint: neither {WEIGHTS} nor {INDEX}.")
    _check_file_name(named, where=config)
    if not named.endswith(".index.json"):
        return None, (named,), {}
    index = directory / named
    weight_map = _read_json_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError(f"{index} has no weight_map from tensors to shards.")
    for file in weight_map.values():
        _check_file_name(file, where=index)
    return named, tuple(sorted(set(weight_map.values()))), weight_map


def _check_file_name(file: object, *, where: Path) -> None:
    """A weight file lies in the directory itself: a name that leads elsewhere is refused."""
    if not isinstance(file, str) or not file or {"/", "\\", "\0"} & set(file) or file in (".", ".."):
        raise InputError(f"{where} names {file!r} as a weight file, which is not the name of a file beside it.")


def _read_json_object(path: Path) -> dict[str, Any]:
    try:
        contents = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not valid JSON: {error}.") from error
    if not isinstance(contents, dict):
        raise InputError(f"{path} is not a JSON object.")
    return contents


def _holds_only(path: Path, tensor_names: Collection[str]) -> bool:
    """Whether `path` is a safetensors file that holds nothing but (some of) the tensors named."""
    if path.suffix != ".safetensors":
        return False
    try:
        tensors = read_header(path).tensors
    except InputError:
        return False  # nothing reads it as weights, so it is a file like any other
    return bool(tensors) and all(tensor.name in tensor_names for tensor in tensors)
