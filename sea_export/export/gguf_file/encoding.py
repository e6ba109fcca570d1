"""The values of GGUF tensors: edited, and encoded again, one matrix at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants
from torch import Tensor

from sea_export.edit.fold import bias_roundings, fold_bias, fold_tensor, tensor_roundings
from sea_export.edit.layer_edit import LayerEdit
from sea_export.errors import InputError, SeaExportError
from sea_export.model.gguf_header import GgufTensor
from sea_export.model.gguf_values import decode, matrices
from sea_export.model.load_model import is_finite

__all__ = [
    "FLOATS",
    "EditedMatrix",
    "GgufEdit",
    "asked_type",
    "check_finite",
    "edited_matrices",
    "encode",
    "is_encodable",
    "output_type",
]

FLOATS = (GGMLQuantizationType.F32, GGMLQuantizationType.F16, GGMLQuantizationType.BF16)
"""The types that are not quantized."""


@dataclass(frozen=True)
class GgufEdit:
    """What is done to one tensor."""

    layers: Sequence[LayerEdit]
    """The layer edits in the order of their application."""
    type: GGMLQuantizationType
    """How the edited values are encoded."""

    def fold(self, values: Tensor) -> Tensor:
        """The values with the edit folded in, in float32.

        Args:
            values: float32: (d, m) a weight, or (d,) a bias.
        """
        if values.ndim > 1:
            return fold_tensor(values, self.layers, -2)
        folded = fold_bias(values, self.layers, values.dtype)
        assert folded is not None
        return folded

    def roundings(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """The lowest and the highest number that `fold` may give on any processor.

        Args:
            values: see `fold`.
        """
        return tensor_roundings(values, self.layers, -2) if values.ndim > 1 else bias_roundings(values, self.layers)


@dataclass(frozen=True)
class EditedMatrix:
    """One matrix of an edited tensor."""

    values: Tensor
    """(d, m) as the base has it, in float32; or (d,) for a bias."""
    folded: Tensor
    """The same shape, with the edit folded in."""
    data: np.ndarray
    """(bytes,) uint8, the folded values encoded."""


def output_type(tensor: GgufTensor, asked: str) -> GGMLQuantizationType:
    """The type in which an edited tensor is stored.

    Args:
        tensor: the tensor of the base.
        asked: the value of `--gguf-type`. It is for weights; a bias stays as it is.

    Raises:
        InputError: no values can be encoded in it here, or no rows of this length.
    """
    chosen = asked_type(tensor, asked)
    if not is_encodable(chosen):
        raise InputError(
            f"--gguf-type: {tensor.name} is stored as {chosen.name}, which the gguf package reads and cannot write. "
            "Choose --gguf-type auto, which stores it as Q8_0."
        )
    if tensor.shape[-1] % GGML_QUANT_SIZES[chosen][0]:
        raise InputError(
            f"--gguf-type: {tensor.name} has rows of {tensor.shape[-1]} values, and {chosen.name} holds multiples of "
            f"{GGML_QUANT_SIZES[chosen][0]}. Choose --gguf-type F16."
        )
    return chosen


def asked_type(tensor: GgufTensor, asked: str) -> GGMLQuantizationType:
    """The type of `output_type`, whether or not anything can be encoded in it.

    Args:
        tensor: the tensor of the base.
        asked: the value of `--gguf-type`.
    """
    if len(tensor.shape) < 2 or asked == "same":
        return tensor.type
    if asked == "auto":
        return tensor.type if tensor.type in FLOATS else GGMLQuantizationType.Q8_0
    return GGMLQuantizationType[asked]


def is_encodable(type: GGMLQuantizationType) -> bool:
    """Whether the gguf package can encode values in a type. It can decode more types than it can encode.

    Args:
        type: the type.
    """
    try:
        quants.quantize(np.zeros((1, GGML_QUANT_SIZES[type][0]), np.float32), type)
    except NotImplementedError:
        return False
    return True


def encode(values: Tensor, type: GGMLQuantizationType) -> np.ndarray:
    """The bytes (bytes,) uint8 of the values of a tensor.

    Args:
        values: (..., m) float32.
        type: how the values are encoded.
    """
    rows = values.reshape(-1, values.shape[-1]).contiguous().numpy()
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        data: np.ndarray = quants.quantize(rows, type)
    return data.reshape(-1).view(np.uint8)


def check_finite(tensor: GgufTensor, values: Tensor) -> None:
    """Raises InputError for values of a base's tensor that are infinite or not numbers."""
    if not is_finite(values):
        raise InputError(
            f"{tensor.name}: the base has values in it that are infinite or not numbers. Download the base again."
        )


def edited_matrices(tensor: GgufTensor, data: np.ndarray, edit: GgufEdit) -> Iterator[EditedMatrix]:
    """The matrices of a tensor, edited one after the other.

    Args:
        tensor: the tensor of the base.
        data: (bytes,) uint8, its bytes.
        edit: what is done to it.

    Raises:
        InputError: the base has values that are not finite.
        SeaExportError: the edited values are not finite in their type.
    """
    shape = tensor.shape[-2:]
    for one in matrices(tensor, data):
        values = decode(one, shape, tensor.type)
        check_finite(tensor, values)
        folded = edit.fold(values)
        encoded = encode(folded, edit.type)
        if not is_finite(folded) or not is_finite(decode(encoded, shape, edit.type)):
            raise SeaExportError(
                f"{tensor.name}: with the edit folded in it has values that are not finite in {edit.type.name}. Lower "
                "--strength, or choose another --normalization or --gguf-type F32."
            )
        yield EditedMatrix(values, folded, encoded)
