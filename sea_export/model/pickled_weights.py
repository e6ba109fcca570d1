"""Weights in PyTorch's pickled files, read without running what a pickle may ask for.

A pickle is a program. With `weights_only`, torch runs only a part of the language, but in this part a small file can
still ask for any amount of memory or time. So the program is read before it is run: it may not be longer than that of a
file of weights, and it may name only what weights consist of.
"""

from __future__ import annotations

import pickletools
import zipfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import torch

from sea_export.errors import InputError, refused_by_library
from sea_export.files.archives import directory_bytes
from sea_export.files.reading import open_file

__all__ = ["is_stored", "load_pickle", "load_pickled_weights"]

# Enough for the names, shapes and positions of some 20 000 tensors in one file.
_MAXIMUM_PICKLE_BYTES = 4_000_000
_MAXIMUM_DIRECTORY_BYTES = 8_000_000
_PICKLES_OF_OLD_FORMAT = 5
_PROTOCOL = 2

_ALLOWED = {
    "collections OrderedDict",
    "torch Size",
    "torch._utils _rebuild_parameter",
    "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_tensor_v3",
    "torch.nn.parameter Parameter",
    "torch.storage TypedStorage",
    "torch.storage UntypedStorage",
}


def load_pickle(path: Path) -> object:
    """What one pickled file holds, if that is tensors, numbers, texts, and lists and maps of them.

    Args:
        path: the file. Tensors are mapped into memory where its format allows.

    Raises:
        InputError: the file is missing or damaged, or needs code to be run.
    """
    with refused_by_library(f"{path}: it is damaged", remedy="Download it again."):
        with open_file(path) as stream:
            zipped = zipfile.is_zipfile(stream)  # raises an error for some damaged archives
        for program in _zipped_pickles(path) if zipped else _old_pickles(path):
            _check(program, path)
        loaded: object = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
        return loaded


def load_pickled_weights(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of one pickled file by name, mapped into memory where its format allows.

    Args:
        path: the file.

    Raises:
        InputError: the file is missing or damaged, holds something other than weights, or needs code to be run.
    """
    state = load_pickle(path)
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(tensor, torch.Tensor) for name, tensor in state.items()
    ):
        raise InputError(
            f"{path}: it does not hold the weights of a model, which are a map from names to tensors. Download it "
            "again."
        )
    for name, tensor in state.items():
        if not is_stored(tensor):
            raise InputError(f"{path}: it stores fewer values of {name} than its shape has. Download it again.")
    return state


def is_stored(tensor: torch.Tensor) -> bool:
    """Whether all values of a tensor are in its file. A small file can describe a large tensor by strides of 0.

    Args:
        tensor: what was loaded.
    """
    return tensor.layout == torch.strided and tensor.nbytes <= tensor.untyped_storage().nbytes()


def _zipped_pickles(path: Path) -> Iterator[bytes]:
    """The programs in a file in the format of PyTorch 1.6 and later, which is an uncompressed zip archive."""
    with open_file(path) as stream:
        if directory_bytes(stream) > _MAXIMUM_DIRECTORY_BYTES:
            raise ValueError("it is an archive of too many files")
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            if entry.compress_type != zipfile.ZIP_STORED:
                raise ValueError("it is a compressed archive")
            if entry.filename.endswith(".pkl"):
                if entry.file_size > _MAXIMUM_PICKLE_BYTES:
                    raise ValueError(f"its {entry.filename} is larger than that of any weights")
                yield archive.read(entry)


def _old_pickles(path: Path) -> Iterator[bytes]:
    """The programs at the beginning of a file in the format before PyTorch 1.6, one after another."""
    with open_file(path) as stream:
        text = BytesIO(stream.read(_MAXIMUM_PICKLE_BYTES))
    for _ in range(_PICKLES_OF_OLD_FORMAT):
        start = text.tell()
        for _ in pickletools.genops(text):
            pass
        yield text.getvalue()[start : text.tell()]


def _check(program: bytes, path: Path) -> None:
    """Raises InputError for a pickle that does more than list tensors, ValueError for a damaged one."""
    tuples: set[object] = set()
    previous = ""
    for operation, argument, _ in pickletools.genops(program):
        name = operation.name
        if name == "PROTO" and argument != _PROTOCOL:
            raise ValueError(f"it is in protocol {argument}, which torch does not write")
        if name == "GLOBAL" and not _is_allowed(str(argument)):
            raise InputError(
                f"{path}: to read it, code would have to run ({argument}), which could do anything. Use a copy in "
                "safetensors."
            )
        # Nested tuples that all refer to one tuple are small to store, and take endless time to compare.
        if name.endswith("PUT") and previous.startswith("TUPLE"):
            tuples.add(argument)
        if (name.endswith("GET") and argument in tuples) or name in ("DUP", "MEMOIZE", "STACK_GLOBAL", "INST", "OBJ"):
            raise ValueError(f"it uses {name} in a way that no list of tensors does")
        previous = name


def _is_allowed(name: str) -> bool:
    module, _, attribute = name.partition(" ")
    if module == "torch" and name not in _ALLOWED:
        return attribute.endswith("Storage") or isinstance(getattr(torch, attribute, None), torch.dtype)
    return name in _ALLOWED
