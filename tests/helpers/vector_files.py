"""Small files of vectors, one of each form that is imported."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from tests.helpers.gguf_files import write_control_vector
from tests.helpers.template_folders import scratch_folder

__all__ = ["VECTOR_LAYERS", "VECTOR_SIZE", "vector_file"]

VECTOR_LAYERS, VECTOR_SIZE = 4, 6
_VECTORS = {layer: torch.arange(VECTOR_SIZE, dtype=torch.float32) + layer for layer in (1, 2, 3)}
_NAMED = {f"layer.{layer}": vector for layer, vector in _VECTORS.items()}


def _write_npz(path: Path) -> None:
    np.savez_compressed(path, **{name: vector.numpy() for name, vector in _NAMED.items()})


_WRITERS: Mapping[str, Callable[[Path], object]] = {
    ".gguf": lambda path: write_control_vector(path, _VECTORS),
    ".safetensors": lambda path: save_file(_NAMED, path),
    ".npz": _write_npz,
    ".npy": lambda path: np.save(path, np.ones((VECTOR_LAYERS + 1, VECTOR_SIZE), np.float32)),
    ".json": lambda path: path.write_text(json.dumps({name: vector.tolist() for name, vector in _NAMED.items()})),
    ".pt": lambda path: torch.save(_VECTORS, path),
}


@functools.cache
def vector_file(name: str) -> bytes:
    """The bytes of a valid file.

    Args:
        name: its name, whose ending says the form.
    """
    with scratch_folder() as folder:
        path = folder / name
        _WRITERS[path.suffix](path)
        return path.read_bytes()
