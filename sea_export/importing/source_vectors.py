"""Which vector of a file belongs to which decoder layer.

| source | what its number N means | stated in |
|---|---|---|
| `direction.N` in GGUF, of llama.cpp | added to what decoder layer N gives, counted from 0; there is none for layer 0 | `common_control_vector_load_one` in `common/common.cpp` stores it at row N - 1, `llama_adapter_cvec::apply` in `src/llama-adapter.cpp` reads row il - 1 for layer il, and the graphs of `src/models` add it after the MLP |
| the same, of repeng | added to what decoder layer N gives, counted from 0 | `ControlModule.forward` in `repeng/control.py`; `read_representations` in `repeng/extract.py` makes negative numbers positive, and reads `hidden_states[N + 1]` |
| `layer_activations` of steering-vectors | added to what decoder layer N (`layer_type="decoder_block"`), its MLP (`mlp`) or its attention (`self_attn`) gives, counted from 0, or from the end if negative | `SteeringVector.patch_activations` in `steering_vectors/steering_vector.py` |
| any other map from numbers | taken for the same; `--numbering inputs` for what layer N is given | |
| a row for each layer | asked for by `--numbering`; with one row more than layers it can only be `hidden_states`: inputs | transformers, `output_hidden_states` |
"""  # noqa: E501 - the rows of a table

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from sea_export.errors import InputError
from sea_export.importing.import_options import ImportOptions
from sea_export.importing.source_file import SourceFile

__all__ = ["SourceVectors", "source_vectors"]

# A hyphen is a sign where no name comes before it.
_NUMBER = re.compile(r"(?:(?<![\w.\])])-)?\d+|(?<=\.)-\d+")
_MAXIMUM_DIGITS = 6


@dataclass(frozen=True)
class SourceVectors:
    """The vectors of a file. One of the two is there."""

    by_layer: Mapping[int, Tensor] | None
    """Decoder layer, counted from 0 -> (k, d) float64, the vectors of what it gives. Layer -1 is what the embedding
    gives."""
    alone: Tensor | None
    """(k, d) float64: vectors of no layer."""
    numbering: str | None
    """What the numbers of the file meant, `outputs` or `inputs`; None if it has none, or one of them was chosen."""


def source_vectors(file: SourceFile, layer_count: int, size: int, options: ImportOptions) -> SourceVectors:
    """Finds out which vector belongs to which layer.

    Args:
        file: what was read.
        layer_count: how many decoder layers the model has.
        size: its hidden size d.
        options: `numbering` and `source_layer` are used.

    Raises:
        InputError: the vectors are not of this size, the file does not say which layers they belong to, or that has to
            be said by an option.
    """
    numbered = _numbered(file)
    numbering = options.numbering
    if numbered is None:
        ((_, array),) = file.arrays.items()
        rows = _rows(file, "", array, size)
        if len(rows) not in (layer_count, layer_count + 1) or array.ndim == 1:
            return _alone(file, rows, options)
        numbering = _numbering_of_rows(file, len(rows) - layer_count, options.numbering)
        numbered = {number: row[None] for number, row in enumerate(rows)}
        count = len(rows)
    else:
        numbered = {number: _rows(file, str(number), array, size) for number, array in numbered.items()}
        numbering = numbering or "outputs"
        count = layer_count if numbering == "outputs" else layer_count + 1
    by_number = _from_the_start(file, numbered, count)
    if options.source_layer is not None:
        wanted = options.source_layer + (count if options.source_layer < 0 else 0)
        if wanted not in by_number:
            raise InputError(
                f"--source-layer: {file.name} has no vector of number {options.source_layer}, but of "
                f"{_listed(sorted(by_number))}. Choose one of them."
            )
        return SourceVectors(None, by_number[wanted], None)
    shift = 0 if numbering == "outputs" else 1
    return SourceVectors({number - shift: rows for number, rows in by_number.items()}, None, numbering)


def _alone(file: SourceFile, rows: Tensor, options: ImportOptions) -> SourceVectors:
    for name, value in (("--numbering", options.numbering), ("--source-layer", options.source_layer)):
        if value is not None:
            raise InputError(f"{name}: the vectors of {file.name} have no numbers. Leave the option out.")
    return SourceVectors(None, rows, None)


def _numbered(file: SourceFile) -> dict[int, Tensor] | None:
    """The arrays by the numbers in their names; None for a single array without a number."""
    found: dict[int, Tensor] = {}
    for name, array in file.arrays.items():
        numbers = _NUMBER.findall(name)
        if not numbers and len(file.arrays) == 1:
            return None
        if len(numbers) != 1 or len(numbers[0]) > _MAXIMUM_DIGITS or int(numbers[0]) in found:
            raise InputError(
                f"{file.name}: the name {name!r} does not say of which layer the vector is, by one number of its own. "
                "Name vectors by the numbers of their layers."
            )
        found[int(numbers[0])] = array
    return found


def _rows(file: SourceFile, name: str, array: Tensor, size: int) -> Tensor:
    """(k, d) of an array (d,), (k, d), or with further dimensions of size 1."""
    shape = tuple(array.shape)
    if not shape or shape[-1] != size or any(count != 1 for count in shape[:-2]) or not array.numel():
        raise InputError(
            f"{file.name}: {f'its vector {name}' if name else 'its array'} has the shape {shape}, and activations of "
            f"the model have {size} features. Give vectors of the same model."
        )
    return array.reshape(-1, size)


def _numbering_of_rows(file: SourceFile, more: int, numbering: str | None) -> str:
    if numbering is None and not more:
        raise InputError(
            f"--numbering: {file.name} has a row for each layer, and does not say of what. Choose outputs for rows of "
            "what a layer gives, or inputs for rows of what it is given."
        )
    if more and numbering == "outputs":
        raise InputError(
            f"--numbering: {file.name} has one row more than the model has layers, which are those of hidden_states. "
            "Choose inputs."
        )
    return numbering or "inputs"


def _from_the_start(file: SourceFile, numbered: Mapping[int, Tensor], count: int) -> dict[int, Tensor]:
    """The vectors by numbers from 0 on. Negative ones count from the end."""
    found = {number + (count if number < 0 else 0): rows for number, rows in numbered.items()}
    wrong = [number for number in found if not 0 <= number < count]
    if wrong or len(found) != len(numbered):
        raise InputError(
            f"{file.name}: its numbers {_listed(sorted(numbered))} are not those of the {count} there can be. Give "
            "vectors of the same model."
        )
    return found


def _listed(numbers: list[int]) -> str:
    """Some numbers in words, of which there may be many."""
    return ", ".join(map(str, numbers)) if len(numbers) < 6 else f"{numbers[0]} to {numbers[-1]}"
