"""The comparison of a repeated run with the first one: byte-identical, equal to rounding, or different.

Files are compared by their digests. Tensors of the base that differ are compared number by number. Tensors that an
export adds, and those of the edit, hold directions. Directions may be rotated within their span, or change their sign,
although the edit is the same. They are therefore compared by what the edit does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sea_export.edit.layer_edit import LayerEdit
from sea_export.edit.spectral_edit import SpectralEdit
from sea_export.export.manifest import fits_of, read_manifest
from sea_export.files.digests import file_digest
from sea_export.files.frames import data_frame
from sea_export.model.checkpoint import CARD
from sea_export.model.diff import TensorDifference, compare_files
from sea_export.model.load_model import dtype_named
from sea_export.model.model_files import gguf_part_names

if TYPE_CHECKING:
    from pandas import DataFrame

__all__ = ["DIFFERENT", "EQUAL_TO_ROUNDING", "IDENTICAL", "Reproduction", "compare_runs"]

IDENTICAL = "byte-identical"
EQUAL_TO_ROUNDING = "equal to rounding"
DIFFERENT = "different"

DESCRIPTIONS = (CARD, "sea_edit/sea_edit.json")
"""Files that describe a run and are not its result: versions, threads, measurements."""

_EDIT_TENSORS = "sea_edit/sea_edit.safetensors"
_PROBES = 64


@dataclass(frozen=True)
class Reproduction:
    """How a repeated run compares with the first one.

    Attributes:
        verdict: `IDENTICAL`, `EQUAL_TO_ROUNDING` or `DIFFERENT`, without the descriptions.
        identical_files: the number of files that are the same, byte for byte, with the descriptions.
        changed_files: the files that differ, without the descriptions.
        changed_descriptions: the descriptions that differ.
        tensors: (file, tensor) -> the difference between the two, if any byte differs.
        edit: target -> ‖difference of the outputs of the edits‖ / ‖what the first edit changes‖ on random activations,
            for targets where it is not 0.
        tolerance: the largest relative difference that counts as rounding: the square root of the precision of the
            dtype of the computation, which is half of its digits. Stored tensors may differ by one more unit of their
            own dtype.
        problems: why the verdict is `DIFFERENT`.
        changed_circumstances: what was different in the two runs, and may change the last digits of a result.
    """

    verdict: str
    identical_files: int
    changed_files: tuple[str, ...]
    changed_descriptions: tuple[str, ...]
    tensors: Mapping[tuple[str, str], TensorDifference]
    edit: Mapping[str, float]
    tolerance: float
    problems: tuple[str, ...]
    changed_circumstances: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain JSON data."""
        tensors = [{"file": file, "name": name, **asdict(one)} for (file, name), one in self.tensors.items()]
        return {**asdict(self), "tensors": tensors}

    def to_frame(self) -> DataFrame:
        """A row for each tensor that differs, as a data frame of pandas.

        Raises:
            InputError: pandas is not installed.
        """
        return data_frame(self.to_dict()["tensors"], ["file", "name", "maximum", "relative"])


def compare_runs(manifest: Mapping[str, Any], directory: Path, output: Path) -> Reproduction:
    """Compares a repeated run with the first one.

    Args:
        manifest: the manifest of the first run.
        directory: where the files of the first run were written.
        output: the checkpoint that the repeated run has written.

    Raises:
        InputError: `output` is not a checkpoint that sea-export wrote.
    """
    then, now = manifest["files"], read_manifest(output)["files"]
    differing = [name for name in sorted(then.keys() | now.keys()) if then.get(name) != now.get(name)]
    changed = [name for name in differing if name not in DESCRIPTIONS]
    tolerance = _tolerance(manifest)
    problems = [f"{name}: only one of the runs has it." for name in changed if (name in then) != (name in now)]
    common = [name for name in changed if name in then and name in now]
    tensors: dict[tuple[str, str], TensorDifference] = {}
    edit: dict[str, float] = {}
    gone = [name for name in common if not _is_still_there(directory / name, then[name])]
    if gone:
        problems.append(
            f"{gone[0]}: that of the first run is not beside its manifest, so that the size of the difference is "
            "unknown."
        )
    else:
        for name in common:
            found, reasons = _compare_file(name, directory, output)
            tensors |= found
            problems += reasons
        if common:
            edit, reasons = _compare_edits(directory, output, then, tolerance)
            problems += reasons
        stored = tolerance + _precision(manifest["base"]["dtype"])
        problems += _beyond_rounding(tensors, set(manifest.get("added_tensors", ())), stored)
    return Reproduction(
        verdict=IDENTICAL if not changed else DIFFERENT if problems else EQUAL_TO_ROUNDING,
        identical_files=sum(now.get(name) == digest for name, digest in then.items()),
        changed_files=tuple(changed),
        changed_descriptions=tuple(name for name in differing if name in DESCRIPTIONS),
        tensors=tensors,
        edit=edit,
        tolerance=tolerance,
        problems=tuple(problems),
    )


def _tolerance(manifest: Mapping[str, Any]) -> float:
    return max(_precision(fit["computation"]["dtype"]) for fit in fits_of(manifest["edit"])) ** 0.5


def _precision(dtype: str) -> float:
    kind = dtype_named(dtype)
    return torch.finfo(kind).eps if kind.is_floating_point else 0.0


def _is_still_there(path: Path, digest: str) -> bool:
    return path.is_file() and file_digest(path) == digest


def _compare_file(
    name: str, directory: Path, output: Path
) -> tuple[dict[tuple[str, str], TensorDifference], list[str]]:
    """The tensors that differ in a file that both runs have, and all other differences."""
    if name.endswith(".gguf"):
        return _compare_gguf(name, directory, output)
    if not name.endswith(".safetensors"):
        return {}, [f"{name}: it has other contents."]
    difference = compare_files(directory / name, output / name)
    others = (*difference.only_in_a, *difference.only_in_b, *difference.of_other_form)
    problems = [f"{tensor} of {name}: only one of the runs has it, or it has another shape." for tensor in others]
    return {(name, tensor): change for tensor, change in difference.changed.items()}, problems


def _compare_gguf(
    name: str, directory: Path, output: Path
) -> tuple[dict[tuple[str, str], TensorDifference], list[str]]:
    """The same for a GGUF file, or for the model of which it is a part."""
    from sea_export.model.gguf_diff import compare_gguf

    first = gguf_part_names(name)[0]
    difference = compare_gguf(directory / first, output / first)
    others = (*difference.tensors_only_in_a, *difference.tensors_only_in_b, *difference.tensors_of_other_shape)
    problems = [f"{tensor} of {name}: only one of the runs has it, or it has another shape." for tensor in others]
    keys = (*difference.keys_only_in_a, *difference.keys_only_in_b, *difference.keys_changed)
    # What a file tells about its base contains the version of sea-export.
    problems += [f"{key} of {name}: it has another value." for key in keys if not key.startswith("general.base_model.")]
    for tensor, (one, other, _) in difference.tensors_changed.items():
        if one.type != other.type:
            problems.append(f"{tensor} of {name}: its type is {other.type.name}, and was {one.type.name}.")
    return {(name, tensor): change for tensor, (_, _, change) in difference.tensors_changed.items()}, problems


def _compare_edits(
    directory: Path, output: Path, then: Mapping[str, str], tolerance: float
) -> tuple[dict[str, float], list[str]]:
    if not all(_is_still_there(directory / name, then[name]) for name in then if name.startswith("sea_edit/")):
        return {}, [
            "sea_edit: that of the first run is not beside its manifest, so that the difference of the edits is "
            "unknown."
        ]
    first, second = SpectralEdit.load(directory), SpectralEdit.load(output)
    if first.targets != second.targets:
        layers = {str(target) for target in set(first.targets) ^ set(second.targets)}
        return {}, [f"{', '.join(sorted(layers))}: only one of the runs edits it."]
    pairs = {str(target): (first.layers[target], second.layers[target]) for target in first.targets}
    if others := [target for target, (one, other) in pairs.items() if one[0].size != other[0].size]:
        return {}, [f"{', '.join(others)}: its edit is of another hidden size."]
    found = {target: _relative(one, other) for target, (one, other) in pairs.items()}
    problems = [
        f"{target}: its edit differs by {value:.1e} of what it does."
        for target, value in found.items()
        if not value <= tolerance
    ]
    return {target: value for target, value in found.items() if value}, problems


def _relative(first: tuple[LayerEdit, ...], second: tuple[LayerEdit, ...]) -> float:
    """‖difference of the outputs‖ / ‖what the first edit changes‖ of random activations."""
    activations = torch.randn(_PROBES, first[0].size, generator=torch.Generator().manual_seed(0))
    a, b = activations, activations
    for edit in first:
        a = edit.apply(a)
    for edit in second:
        b = edit.apply(b)
    if torch.equal(a, b):
        return 0.0
    return float((a - b).norm() / (a - activations).norm())


def _beyond_rounding(
    tensors: Mapping[tuple[str, str], TensorDifference], added: set[str], tolerance: float
) -> list[str]:
    return [
        f"{tensor} of {file}: it differs by {change.relative:.1e} of its norm."
        for (file, tensor), change in tensors.items()
        if file != _EDIT_TENSORS and tensor not in added and not change.relative <= tolerance
    ]
