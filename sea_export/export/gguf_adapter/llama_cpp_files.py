"""The files of a GGUF adapter, in the form in which llama.cpp reads them.

A LoRA (`src/llama-adapter.cpp`) has for each adapted tensor NAME the factors NAME.lora_a (r, m) and NAME.lora_b (d, r),
those of stacked experts stacked too. What is added is (alpha / r) B A. A control vector (`common/common.cpp`) has a
tensor direction.N (d,) for each layer N, counted from 0, to whose output it is added. Layer 0 can have none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from gguf import GGMLQuantizationType, GGUFType, GGUFValueType, Keys
from torch import Tensor

from sea_export.errors import InputError
from sea_export.files.reading import check_contained
from sea_export.model.gguf_header import (
    GgufEntry,
    GgufHeader,
    GgufTensor,
    encode_header,
    number_entry,
    read_gguf_header,
    text_entry,
)
from sea_export.model.gguf_values import decode, read_bytes

__all__ = [
    "CONTROL_VECTOR",
    "LORA",
    "AdapterFile",
    "control_vector_file",
    "directions_of",
    "lora_file",
    "read_adapter_file",
    "read_tensors",
]

LORA = "sea-lora.gguf"
CONTROL_VECTOR = "sea-control-vector.gguf"

_VERSION = 3
_ALIGNMENT = 32
_DIRECTION = "direction."
_ARCHITECTURE = Keys.General.ARCHITECTURE


@dataclass(frozen=True)
class AdapterFile:
    """One file, before it is written."""

    name: str
    entries: tuple[GgufEntry, ...]
    """Its metadata."""
    tensors: Mapping[str, Tensor]
    """Its tensors in float32, by name."""

    @property
    def header(self) -> bytes:
        """Its bytes up to the first tensor."""
        f32 = GGMLQuantizationType.F32
        tensors = [GgufTensor(name, tuple(values.shape), f32) for name, values in self.tensors.items()]
        return encode_header(_VERSION, self.entries, tensors, _ALIGNMENT)

    @property
    def size(self) -> int:
        """About how many bytes it has."""
        return len(self.header) + sum(tensor.nbytes for tensor in self.tensors.values())

    def write(self, directory: Path) -> None:
        """Writes it. The same file has the same bytes.

        Args:
            directory: an existing directory, which has no file of that name.

        Raises:
            OSError: it could not be written.
        """
        with open(directory / self.name, "xb") as stream:
            stream.write(self.header)
            for tensor in self.tensors.values():
                stream.write(tensor.contiguous().numpy().data)
                stream.write(bytes(-tensor.nbytes % _ALIGNMENT))


def lora_file(
    architecture: str, origin: tuple[GgufEntry, ...], alpha: int, factors: Mapping[str, Tensor]
) -> AdapterFile:
    """The LoRA.

    Args:
        architecture: what llama.cpp calls the architecture of the base.
        origin: entries about the base.
        alpha: the rank of all factors, so that B A is added as it is.
        factors: float32, by name.
    """
    entries = (
        text_entry(_ARCHITECTURE, architecture),
        text_entry(Keys.General.TYPE, GGUFType.ADAPTER),
        text_entry(Keys.Adapter.TYPE, "lora"),
        number_entry(Keys.Adapter.LORA_ALPHA, alpha, GGUFValueType.FLOAT32),
        *origin,
    )
    return AdapterFile(LORA, entries, factors)


def control_vector_file(
    architecture: str, origin: tuple[GgufEntry, ...], directions: Mapping[int, Tensor]
) -> AdapterFile:
    """The control vector.

    Args:
        architecture: see `lora_file`.
        origin: see `lora_file`.
        directions: (d,) float32, by the number of the layer, which is at least 1.
    """
    entries = (
        text_entry(_ARCHITECTURE, "controlvector"),
        text_entry("controlvector.model_hint", architecture),
        number_entry("controlvector.layer_count", len(directions), GGUFValueType.INT32),
        *origin,
    )
    return AdapterFile(CONTROL_VECTOR, entries, {f"{_DIRECTION}{layer}": one for layer, one in directions.items()})


def directions_of(tensors: Mapping[str, Tensor]) -> dict[int, Tensor]:
    """The directions of a control vector by the number of the layer.

    Args:
        tensors: its tensors.
    """
    return {int(name.removeprefix(_DIRECTION)): tensor for name, tensor in tensors.items()}


def read_adapter_file(directory: Path, name: str) -> GgufHeader:
    """The header of a written file.

    Args:
        directory: the adapter.
        name: the name of the file.

    Raises:
        InputError: it is missing, lies elsewhere, or is damaged.
    """
    path = directory / name
    if not path.is_file():
        raise InputError(f"{path}: it is missing, and holds a part of the edit. Export the edit again.")
    check_contained(path, directory)
    return read_gguf_header(path)


def read_tensors(directory: Path, name: str) -> dict[str, Tensor]:
    """The tensors of a written file, in float32.

    Args:
        directory: the adapter.
        name: the name of the file.

    Raises:
        InputError: see `read_adapter_file`.
    """
    tensors = read_adapter_file(directory, name).tensors
    return {one.name: decode(read_bytes(directory / name, one), one.shape, one.type) for one in tensors}
