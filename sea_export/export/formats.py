"""What an export format is. `sea_export.options.FORMATS` is the registry: a new format is a folder and a line there."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from sea_export.errors import InputError
from sea_export.options import FORMATS, ExportOptions, FitOptions, why_unfoldable

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from sea_export.edit.spectral_edit import SpectralEdit
    from sea_export.export.write_report import WriteReport
    from sea_export.model.architecture import OutputProjection
    from sea_export.model.base import Base
    from sea_export.model.targets import Target

__all__ = [
    "EditInMemory",
    "EditNeeds",
    "ExportFormat",
    "Located",
    "TensorCheck",
    "check_foldable",
    "export_format",
    "formats",
]

LocatedT = TypeVar("LocatedT", bound="Located")
PlanT = TypeVar("PlanT")

EditInMemory = Callable[["PreTrainedModel", "SpectralEdit", "Sequence[OutputProjection]"], AbstractContextManager[None]]
"""While open, a base in memory computes what the export of an edit does without rounding. The output projections are
those of the edit's targets in the base."""


@dataclass(frozen=True)
class EditNeeds:
    """What an edit needs of the format that is to hold it."""

    constant: bool
    """Whether it adds a constant, so that output projections need biases (`center="affine"`)."""
    row_scales: bool
    """Whether it scales features (`normalization`)."""

    @classmethod
    def of_fit(cls, options: FitOptions) -> EditNeeds:
        """What the edit of a fit will need, known before the fit."""
        return cls(options.center == "affine", options.edit.normalization != "none")

    @classmethod
    def of_edit(cls, edit: SpectralEdit) -> EditNeeds:
        """What an edit needs."""
        scales = [layer.scale for layers in edit.layers.values() for layer in layers]
        return cls(edit.needs_bias, any(scale is not None and bool((scale != 1).any()) for scale in scales))


class Located(Protocol):
    """Where a base has some targets, as a format needs it."""

    @property
    def projections(self) -> tuple[OutputProjection, ...]:
        """The output projections of the targets."""


@dataclass(frozen=True)
class TensorCheck:
    """What the tensors of a written export are, compared with its base and its plan."""

    problems: tuple[str, ...]
    """What is not as planned, in sentences."""
    statement: str
    """What the tensors are, in a sentence."""
    changed_tensors: int
    """Tensors that differ from the base's."""
    identical_tensors: int
    """Tensors that are the base's, byte for byte."""
    identical_files: int
    """Other files that are the base's, byte for byte."""
    exact: bool = True
    """False for an export that claims to be no more than an approximation."""
    weight_error: float | None = None
    """For an adapter: the largest ‖adapted W - W'‖ / ‖W' - W‖ of any weight that it changes."""


class ExportFormat(Protocol[LocatedT, PlanT]):
    """One form of an output. A format has no state: what is found out goes from method to method.

    Attributes:
        name: as `--format` has it.
        library: the library that loads the output, as the Hub names it.
        tags: tags of the model card.
        loads_beside_base: whether the output is loaded beside its base, and not in its place.
        runs_code: whether the output comes with code that loading it runs.
        rounds_weights: whether edited weights are rounded to the base's dtype when they are stored.
        details_key: the entry of the manifest that holds `details`; None if there is none.
    """

    name: str
    library: str
    tags: tuple[str, ...]
    loads_beside_base: bool
    runs_code: bool
    rounds_weights: bool
    details_key: str | None

    def check_options(self, fit: FitOptions, export: ExportOptions) -> None:
        """Raises InputError if the format cannot hold the edit that a fit would make, and says why."""

    def locate(self, base: Base, targets: Iterable[Target], needs: EditNeeds, options: ExportOptions) -> LocatedT:
        """Finds where a base has the targets, as the format needs it, without loading a weight.

        Args:
            base: the base.
            targets: what is to be edited.
            needs: what the edit needs.
            options: how it is to be baked.

        Raises:
            InputError: a target is not found, or the format cannot hold such an edit of it.
            SeaExportError: the numerical check of the fold failed.
        """

    def plan(
        self,
        edit: SpectralEdit,
        base: Base,
        located: LocatedT,
        options: ExportOptions,
        load: Callable[[], PreTrainedModel],
    ) -> PlanT:
        """Works out what the export consists of, before anything is written.

        Args:
            edit: the edit.
            base: the base.
            located: what `locate` found for the edit's targets.
            options: how it is to be baked.
            load: gives the base in memory, if the format needs it.

        Raises:
            InputError: the format cannot hold the edit.
        """

    def remarks(self, plan: PlanT) -> list[str]:
        """What is to be known before anything is written, one line each."""

    def details(self, plan: PlanT) -> dict[str, Any]:
        """What the manifest says about an output of this format alone."""

    def disk_bytes(self, base: Base, output: Path, *, targets: int = 0, rank: int = 0) -> int:
        """Bytes of disk that an export needs, about.

        Args:
            base: the base.
            output: what would be written.
            targets: how many targets are edited.
            rank: about the rank of the edit of each; 0 if it is not known.
        """

    def write(
        self, plan: PlanT, base: Base, destination: Path, progress: Callable[[int], None] | None = None
    ) -> WriteReport:
        """Writes what was planned.

        Args:
            plan: what `plan` gave.
            base: the base. It is only read.
            destination: an existing directory, which holds none of the files yet.
            progress: told the number of bytes written since the last call.

        Raises:
            SeaExportError: a file changed meanwhile.
            OSError: a file could not be written.
        """

    def check_before_loading(self, directory: Path, plan: PlanT, *, trust_remote_code: bool) -> None:
        """Finds what no library is to be given.

        Raises:
            InputError: the output is damaged, or it would run code that is not ours and not trusted.
        """

    def stored_dtype(self, base: Base, plan: PlanT) -> torch.dtype | None:
        """The dtype in which the base stores what is edited; None where that is the dtype it is computed in."""

    def edit_in_memory(self, directory: Path, *, quantized: bool, by_layer: bool) -> EditInMemory | None:
        """How a base in memory computes what the export does, without rounding.

        Args:
            directory: the export's.
            quantized: whether the base is quantized.
            by_layer: whether only one layer of the base at a time is in memory.

        Returns:
            None where the export as stored does not round anything, or nothing in memory can stand for it.
        """

    def check(self, directory: Path, base: Base, edit: SpectralEdit, plan: PlanT) -> TensorCheck:
        """Compares the tensors of a written export with the base's and with the plan.

        Raises:
            InputError: the export is damaged.
        """

    def base_of(self, directory: Path) -> str | None:
        """What the output itself calls its base, if it must: a Hub id or a path."""


def export_format(name: str) -> ExportFormat[Any, Any]:
    """The format of a name that is in `sea_export.options.FORMATS`.

    Raises:
        InputError: there is no such format.
    """
    if name not in FORMATS:
        raise InputError(f"--format: {name!r} is no format. Choose one of {', '.join(FORMATS)}.")
    format: ExportFormat[Any, Any] = importlib.import_module(FORMATS[name]).FORMAT
    return format


def formats() -> list[ExportFormat[Any, Any]]:
    """All formats, in the order of the registry."""
    return [export_format(name) for name in FORMATS]


def check_foldable(fit: FitOptions) -> None:
    """Raises InputError if no weight can hold the edit that a fit would make."""
    reason = why_unfoldable(fit.feature_function, fit.edit.normalization)
    if reason:
        raise InputError(reason)
