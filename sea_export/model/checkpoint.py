"""A safetensors checkpoint directory, for reading: its tensors, the positions of their bytes, and its other files."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypedDict

from sea_export.errors import InputError, SeaExportError
from sea_export.files.nearest_name import missing
from sea_export.files.reading import check_contained, read_json_object
from sea_export.files.typed import type_problem
from sea_export.model.model_files import files_to_copy
from sea_export.model.quantization_methods import quantization_method
from sea_export.model.safetensors_header import StoredTensor, read_header

if TYPE_CHECKING:
    import torch

__all__ = ["INDEX", "WEIGHTS", "Checkpoint", "read_index"]

CARD = "README.md"
"""The model card."""
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


class _Config(TypedDict, total=False):
    """The entries of config.json that this package reads by itself. Transformers checks those that it reads."""

    model_type: str
    architectures: list[str] | None
    auto_map: dict[str, Any] | None
    quantization_config: dict[str, Any] | None
    text_config: dict[str, Any] | None
    torch_dtype: str | None
    dtype: str | None


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint directory as transformers would read it. It is never written to.

    Attributes:
        directory: the directory.
        tensors: every tensor that transformers would load, by name.
        weight_files: the safetensors files that hold them, in the order in which they are read.
        index_file: the index that names those files; None for a checkpoint in one file.
    """

    directory: Path
    tensors: Mapping[str, StoredTensor]
    weight_files: tuple[str, ...]
    index_file: str | None
    _config: Mapping[str, Any] | None = field(default=None, repr=False, compare=False)

    @classmethod
    def open(cls, directory: str | os.PathLike[str]) -> Checkpoint:
        """The checkpoint in a directory, with the headers of its weight files read and checked.

        The weights are searched for in the order of transformers: what config.json names as `transformers_weights`,
        else model.safetensors, else the shards of model.safetensors.index.json.

        Args:
            directory: the directory.

        Raises:
            InputError: there is no checkpoint, a shard or a tensor is missing, or a header is not valid.
        """
        directory = Path(directory)
        config = _read_config(directory)
        index_file, weight_files, weight_map = _find_weights(directory, config or {})
        tensors: dict[str, StoredTensor] = {}
        for file in weight_files:
            check_contained(directory / file, directory)
            for tensor in read_header(directory / file).tensors:
                if tensor.name in tensors:
                    raise InputError(
                        f"{directory}: both {tensors[tensor.name].file} and {file} hold the tensor {tensor.name}, and "
                        "programs differ in which they take. Remove one of the files."
                    )
                tensors[tensor.name] = tensor
        for name, file in weight_map.items():
            if name not in tensors or tensors[name].file != file:
                raise InputError(
                    f"{directory}: {file} does not hold the tensor {name}, although {index_file} says so. Download "
                    "the checkpoint again."
                )
        if not tensors:
            raise InputError(f"{directory}: {', '.join(weight_files)} holds no tensors. Download the checkpoint again.")
        return cls(directory, MappingProxyType(tensors), weight_files, index_file, config)

    def read(self, name: str) -> torch.Tensor:
        """A new tensor with the stored values, in the stored dtype and shape.

        Args:
            name: the name of the tensor.

        Raises:
            InputError: the checkpoint holds no tensor of that name.
            SeaExportError: the file has become shorter since the checkpoint was opened.
        """
        import torch  # reading and comparing headers does not need it

        if name not in self.tensors:
            raise InputError(f"{self.directory}: it holds no tensor {name}. Give a complete checkpoint.")
        stored = self.tensors[name]
        data = torch.empty(stored.end - stored.start, dtype=torch.uint8)
        self.read_into(name, data.numpy().data)
        return data.view(stored.dtype).reshape(stored.shape)

    def read_into(self, name: str, buffer: memoryview) -> None:
        """Fills a buffer with the bytes of a tensor.

        Args:
            name: the name of a tensor that is in `tensors`.
            buffer: of the size of the tensor in bytes.

        Raises:
            SeaExportError: the file has become shorter since the checkpoint was opened.
        """
        stored = self.tensors[name]
        with open(self.directory / stored.file, "rb") as stream:
            stream.seek(stored.start)
            if stream.readinto(buffer) != stored.end - stored.start:
                raise SeaExportError(
                    f"{self.directory / stored.file}: it changed while it was read. Make sure that nothing writes to "
                    "it."
                )

    def coarsest_dtype(self, names: Iterable[str]) -> torch.dtype:
        """Of the dtypes of some tensors, the one that rounds most.

        Args:
            names: the names of tensors that hold floating-point numbers, at least one.
        """
        import torch

        return max((self.tensors[name].dtype for name in names), key=lambda dtype: torch.finfo(dtype).eps)

    @property
    def config(self) -> Mapping[str, Any]:
        """The contents of config.json, read when the checkpoint was opened.

        Raises:
            InputError: there is no config.json.
        """
        if self._config is None:
            raise InputError(f"{self.directory / 'config.json'}: there is no such file. Give a complete checkpoint.")
        return self._config

    @property
    def quantization_method(self) -> str | None:
        """The method by which its config says that it is quantized; None if it does not say so."""
        return quantization_method(self._config or {})

    @property
    def size(self) -> int:
        """Bytes of all its files."""
        files = (*self.weight_files, *self.side_files())
        return sum((self.directory / file).stat().st_size for file in files)

    def side_files(self) -> tuple[str, ...]:
        """All files that belong to the model, without the weights: config, index, tokenizer, code, extra heads.

        Returns:
            POSIX paths relative to the directory, sorted.
        """
        copied, _ = self._split_files()
        return tuple(file for file in copied if file not in self.weight_files)

    def left_out(self) -> tuple[str, ...]:
        """The files that an export must not copy.

        These are the unedited weights in another form (formats of other frameworks, shards that the index does not
        name), what the export writes itself (README.md), and what does not belong to a model (.git).

        Returns:
            POSIX paths relative to the directory, sorted. A folder that is left out as a whole ends in a slash.
        """
        _, left_out = self._split_files()
        return left_out

    def _split_files(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        in_use = {*self.weight_files, *([self.index_file] if self.index_file else [])}
        return files_to_copy(self.directory, in_use=in_use, tensor_names=self.tensors.keys())


def _read_config(directory: Path) -> Mapping[str, Any] | None:
    """The contents of config.json, or None if there is no such file."""
    if not directory.exists():
        raise missing(directory, "Give the directory of a checkpoint.")
    if not directory.is_dir():
        raise InputError(f"{directory}: it is not a directory. Give the directory of a checkpoint.")
    file = directory / "config.json"
    check_contained(file, directory)
    if not file.is_file():
        return None
    config = read_json_object(file)
    if problem := type_problem(config, _Config, ""):
        raise InputError(f"{file}: {problem}, so no program can know what model it is. Download it again.")
    return config


def _find_weights(directory: Path, config: Mapping[str, Any]) -> tuple[str | None, tuple[str, ...], Mapping[str, str]]:
    """The index file if there is one, the weight files, and the index's map from tensor to file."""
    named = config.get("transformers_weights")
    if named is None:
        named = WEIGHTS if (directory / WEIGHTS).is_file() else INDEX
        if not (directory / named).is_file():
            raise InputError(
                f"{directory}: it holds no safetensors checkpoint, neither {WEIGHTS} nor {INDEX}. Give the directory "
                "of one."
            )
    _check_file_name(named, where=directory / "config.json")
    if not named.endswith(".index.json"):
        return None, (named,), {}
    index = directory / named
    weight_map = read_index(index)
    return named, tuple(sorted(set(weight_map.values()))), weight_map


def read_index(index: Path) -> dict[str, str]:
    """The map from the names of tensors to weight files that the index of a sharded checkpoint holds.

    Args:
        index: the index file.

    Raises:
        InputError: the file holds no such map, or it names a file in another directory.
    """
    check_contained(index, index.parent)
    weight_map = read_json_object(index, unique_keys=True).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError(f"{index}: it has no weight_map from tensors to shards. Download it again.")
    for file in weight_map.values():
        _check_file_name(file, where=index)
    return weight_map


def _check_file_name(file: object, *, where: Path) -> None:
    """Raises InputError unless `file` is the name of a file in the same directory."""
    if not isinstance(file, str) or not file or {"/", "\\", "\0"} & set(file) or file in (".", ".."):
        raise InputError(
            f"{where}: it names {file!r} as a weight file, which is not the name of a file beside it. Download it "
            "again."
        )
