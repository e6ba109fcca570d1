"""The files of a model directory: which of them belong to a copy of the model, and that all lie inside it."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator
from fnmatch import fnmatchcase
from pathlib import Path

from sea_export.errors import InputError
from sea_export.files.reading import check_contained
from sea_export.model.safetensors_header import read_header
from sea_export.text import is_utf8

__all__ = ["OTHER_FORMAT_FILES", "OTHER_FORMAT_FOLDERS", "files_to_copy", "gguf_part_names", "walk_files"]

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
"""Folders in which publishers store the weights in another form."""

_FOLDERS_LEFT_OUT = (*OTHER_FORMAT_FOLDERS, ".git", ".cache", ".huggingface", "__pycache__", "sea_edit")
_FILES_WRITTEN_ANEW = ("README.md", "sea_export.json")
_MAXIMUM_DEPTH = 50
# The names that llama.cpp's llama-gguf-split gives to the parts of a model.
_PART = re.compile(r"(?P<name>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.DOTALL)
_MAXIMUM_PARTS = 1000
# model.safetensors, model.fp16.safetensors, model-00001-of-00002.safetensors and the indices of such shards.
_WEIGHT_FILE_NAME = re.compile(r"model(\.\w+)?(-\d+-of-\d+)?(\.\w+)?\.safetensors(\.index\.json)?")


def files_to_copy(
    directory: Path, *, in_use: Collection[str] = (), tensor_names: Collection[str] = ()
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The files of a model directory that belong to a copy of the model, and those that do not.

    Args:
        directory: the model directory. Links to files and folders inside it are followed.
        in_use: the weight files and the index that are read. They always belong to a copy.
        tensor_names: the tensors that are read. Another safetensors file that holds only tensors of these names is a
            second copy of the weights. One with other tensors is an extra head, and belongs to a copy.

    Returns:
        The files to copy, and what is left out: POSIX paths relative to `directory`, sorted. A folder that is left out
        as a whole ends in a slash.

    Raises:
        InputError: see `walk_files`.
    """
    copied: list[str] = []
    left_out: list[str] = []
    for path in walk_files(directory, _FOLDERS_LEFT_OUT):
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


def walk_files(directory: Path, unentered: Collection[str]) -> Iterator[Path]:
    """Every file below a directory.

    Args:
        directory: the directory. Links to files and folders inside it are followed.
        unentered: the names of folders that are given themselves, instead of the files in them.

    Raises:
        InputError: a link leads out of the directory, nowhere, or to a folder that contains it, there is something
            that is neither a file nor a folder, or a name is not UTF-8.
    """
    return _walk(directory, directory, unentered, ancestors=frozenset())


def _walk(folder: Path, directory: Path, unentered: Collection[str], *, ancestors: frozenset[str]) -> Iterator[Path]:
    real = os.path.realpath(folder)
    if real in ancestors:
        raise InputError(f"{folder}: it is a link to a folder that contains it. Remove it.")
    if len(ancestors) > _MAXIMUM_DEPTH:
        raise InputError(f"{directory}: its folders are nested more than {_MAXIMUM_DEPTH} deep. Remove them.")
    for path in folder.iterdir():
        if not is_utf8(path.name):
            raise InputError(f"{path}: its name is not UTF-8, and no manifest could name it. Rename or remove it.")
        if path.is_symlink():
            check_contained(path, directory)
        if path.is_file() or (path.is_dir() and path.name in unentered):
            yield path
        elif path.is_dir():
            yield from _walk(path, directory, unentered, ancestors=ancestors | {real})
        else:
            raise InputError(f"{path}: it is neither a file nor a folder (perhaps a broken link). Remove it.")


def _holds_only(path: Path, tensor_names: Collection[str]) -> bool:
    """Whether `path` is a safetensors file that holds only tensors of these names."""
    if path.suffix != ".safetensors":
        return False
    try:
        tensors = read_header(path).tensors
    except InputError:
        return False  # no program can read it as weights, so it is a file like any other
    return bool(tensors) and all(tensor.name in tensor_names for tensor in tensors)


def gguf_part_names(name: str) -> tuple[str, ...]:
    """The names of all files of a GGUF model, in their order; the name itself if it is not that of one part of several.

    Args:
        name: the name of one of them.

    Raises:
        InputError: it says that the model has no part, or more parts than any.
    """
    match = _PART.fullmatch(name)
    if match is None:
        return (name,)
    count = int(match["count"])
    if not 1 <= int(match["number"]) <= count <= _MAXIMUM_PARTS:
        raise InputError(f"{name}: by its name it is no part of a GGUF model. Give it the name that it had.")
    return tuple(f"{match['name']}-{number:05}-of-{count:05}.gguf" for number in range(1, count + 1))
