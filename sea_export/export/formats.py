"""The protocol of an export format. `sea_export.options.FORMATS` is the registry: a new format is a folder and a line
in it."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from sea_export.errors import InputError
from sea_export.model.targets import COMPONENTS
from sea_export.options import FORMATS, ExportOptions, FitOptions

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from sea_export.edit.spectral_edit import SpectralEdit
    from sea_export.export.write_report import WriteReport
    from sea_export.model.architecture import OutputProjection
    from sea_export.model.base import Base
    from sea_export.model.targets import Target

__all__ = [
    "SIDE_FILES_OF_CONVERTED",
    "BaseMoved",
    "EditInMemory",
    "EditNeeds",
    "ExportFormat",
    "Loading",
    "Located",
    "StorageError",
    "TensorCheck",
    "export_format",
    "formats",
]

SIDE_FILES_OF_CONVERTED = "config and tokenizer against those of the base, which was converted"
"""What a check leaves out if the base was converted, for `TensorCheck.unchecked`."""

LocatedT = TypeVar("LocatedT", bound="Located")
PlanT = TypeVar("PlanT")

EditInMemory = Callable[["PreTrainedModel", "SpectralEdit", "Sequence[OutputProjection]"], AbstractContextManager[None]]
"""A context in which a base in memory computes what the export of an edit computes, without rounding. The output
projections are those of the edit's targets in the base."""

BaseMoved = Callable[["PreTrainedModel", "Sequence[OutputProjection]"], AbstractContextManager[None]]
"""A context in which weights of a base in memory move within what their storage rounds: those of some of the output
projections that are edited."""


@dataclass(frozen=True)
class EditNeeds:
    """What an edit needs from a format that holds it."""

    constant: bool
    """Whether it adds a constant, so that output projections need biases (`center="affine"`)."""
    row_scales: bool
    """Whether it scales features (`normalization`)."""
    constant_components: frozenset[str] = frozenset(COMPONENTS)
    """The kinds of blocks to which it adds a constant, if to any."""
    weights: tuple[str, ...] = ()
    """The linear maps whose weights it changes by themselves, by their names in the model."""

    @classmethod
    def of_fit(cls, options: FitOptions) -> EditNeeds:
        """What the edit of a fit will need, known before the fit.

        Args:
            options: the options of the fit.
        """
        return cls(options.center == "affine", options.edit.normalization != "none")

    @classmethod
    def of_edit(cls, edit: SpectralEdit) -> EditNeeds:
        """What a fitted edit needs.

        Args:
            edit: the edit.
        """
        scales = [layer.scale for layers in edit.layers.values() for layer in layers]
        scaled = any(scale is not None and bool((scale != 1).any()) for scale in scales)
        adding = {target for target, layers in edit.layers.items() if any(layer.needs_bias for layer in layers)}
        components = frozenset(target.component for target in adding)
        return cls(bool(adding), scaled, components, tuple(edit.weight_changes))


class Located(Protocol):
    """Where a base has some targets, as a format needs it."""

    @property
    def projections(self) -> tuple[OutputProjection, ...]:
        """The output projections of the targets."""


@dataclass(frozen=True)
class StorageError:
    """What a quantized storage does to a weight with an edit folded in."""

    error: float
    """‖stored - folded‖ / ‖folded‖."""
    own_rounding: float
    """The same of the base against the weights that it was quantized from, if each of them was as likely anywhere up to
    half of the distance to the next number. They are not known."""
    kept: float
    """How much of the change that the edit makes is stored: the change as stored, projected on it; 1 for all."""


@dataclass(frozen=True)
class TensorCheck:
    """The tensors of a written export, compared with its base and its plan."""

    problems: tuple[str, ...]
    """What is not as planned, each as a clause without a full stop."""
    statement: str
    """What the tensors are, in one sentence."""
    changed_tensors: int
    """The number of tensors that differ from the base's, or that it does not have."""
    identical_tensors: int
    """The number of tensors that are the base's, byte for byte."""
    identical_files: int
    """The number of other files that are the base's, byte for byte."""
    exact: bool = True
    """Whether the export is meant to be the edit, and not only an approximation of it."""
    weight_error: float | None = None
    """For an adapter: the largest ‖adapted W - W'‖ / ‖W' - W‖ of the weights that it changes."""
    unchecked: tuple[str, ...] = ()
    """What was not compared, each as a noun phrase."""
    storage: str | None = None
    """What the storage of requantized weights is called; None if there are none."""
    storage_errors: Mapping[str, StorageError] = field(default_factory=dict)
    """Name of a requantized weight -> what its storage does to the edit."""


@dataclass(frozen=True)
class Loading:
    """How transformers loads an export, without sea-export."""

    auto_class: str
    """The class that loads it, or that loads its base."""
    trust_remote_code: bool
    """Whether code may run: that of the export, or that of its base."""
    base: Path | None
    """The directory of the base, for an export that is loaded beside it. What the export calls its base may be any
    model."""
    has_code: bool
    """Whether the export has code of sea-export, and a tokenizer that such code could change."""
    arguments: Mapping[str, str | bool]
    """What else `from_pretrained` is told, such as which GGUF file to load."""

    @classmethod
    def of(cls, format: ExportFormat[Any, Any], base: Base, plan: Any) -> Loading | None:
        """How an export of a base is loaded; None for one that transformers does not load.

        Args:
            format: its format.
            base: the base.
            plan: what `ExportFormat.plan` gave for it.
        """
        if not format.loads_in_transformers:
            return None
        return cls(
            auto_class=base.model_class,
            trust_remote_code=format.runs_code or base.trust_remote_code,
            base=base.checkpoint.directory if format.loads_beside_base else None,
            has_code=format.runs_code,
            arguments=format.loading_arguments(plan),
        )


class ExportFormat(Protocol[LocatedT, PlanT]):
    """One form of an output. A format has no state: the result of one method is an argument of the next.

    Attributes:
        name: the value of `--format`.
        library: the library that loads the output, by its name on the Hub.
        tags: additional tags of the model card.
        loads_beside_base: whether the output is loaded together with its base, and not instead of it.
        loads_in_transformers: whether transformers loads the output.
        names_location: whether the output names the place of its base, which everybody who loads it must have.
        runs_code: whether the output contains code that runs when it is loaded.
        rounds_weights: whether edited weights are rounded to the base's dtype when they are stored.
        changes_source: whether the output is made from the file that the base was converted from.
        details_key: the entry of the manifest that holds `details`; None if there is none.
    """

    name: str
    library: str
    tags: tuple[str, ...]
    loads_beside_base: bool
    loads_in_transformers: bool
    names_location: bool
    runs_code: bool
    rounds_weights: bool
    changes_source: bool
    details_key: str | None

    def check_options(self, fit: FitOptions, export: ExportOptions) -> None:
        """Raises InputError if the format cannot hold the edit that a fit would make. The message says why.

        Args:
            fit: the options of the fit.
            export: how the edit is to be baked.
        """

    def locate(self, base: Base, targets: Iterable[Target], needs: EditNeeds, options: ExportOptions) -> LocatedT:
        """Finds what the format needs to know about the targets in a base, without loading weights.

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
        """Determines what the export consists of, before anything is written.

        Args:
            edit: the edit.
            base: the base.
            located: what `locate` found for the edit's targets.
            options: how it is to be baked.
            load: loads the base into memory. It is called only if the format needs that.

        Raises:
            InputError: the format cannot hold the edit.
        """

    def remarks(self, plan: PlanT) -> list[str]:
        """What the user should know before anything is written, one line each.

        Args:
            plan: what `plan` gave.
        """

    def details(self, plan: PlanT) -> dict[str, Any]:
        """What the manifest says about an output of this format only, as plain JSON data.

        Args:
            plan: what `plan` gave.
        """

    def disk_bytes(self, base: Base, output: Path, options: ExportOptions, *, targets: int = 0, rank: int = 0) -> int:
        """About how many bytes an export needs on the disk.

        Args:
            base: the base.
            output: the directory to be written.
            options: how the edit is to be baked.
            targets: the number of edited targets.
            rank: about the rank of the edit of each target; 0 if it is not known.
        """

    def write(
        self, plan: PlanT, base: Base, destination: Path, progress: Callable[[int], None] | None = None
    ) -> WriteReport:
        """Writes the export.

        Args:
            plan: what `plan` gave.
            base: the base. It is only read.
            destination: an existing, empty directory.
            progress: called with the number of bytes written since the last call.

        Raises:
            SeaExportError: a file of the base changed while it was read, or a value is not finite.
            OSError: a file could not be written.
        """

    def check_before_loading(self, directory: Path, plan: PlanT, *, trust_remote_code: bool) -> None:
        """Checks an output before any library loads it.

        Args:
            directory: the output.
            plan: what `plan` gave.
            trust_remote_code: whether code that sea-export does not write may run.

        Raises:
            InputError: the output is damaged, or it would run code that is neither sea-export's nor trusted.
        """

    def stored_dtype(self, base: Base, plan: PlanT) -> torch.dtype | None:
        """The coarsest dtype in which the base stores edited weights; None if no stored weight is edited.

        Args:
            base: the base.
            plan: what `plan` gave.
        """

    def loading_arguments(self, plan: PlanT) -> Mapping[str, str | bool]:
        """What transformers' `from_pretrained` has to be told besides the directory of an export.

        Args:
            plan: what `plan` gave.
        """

    def edit_in_memory(self, directory: Path, *, quantized: bool, by_layer: bool) -> EditInMemory | None:
        """How a base in memory computes what the export computes, without rounding.

        Args:
            directory: the export.
            quantized: whether the base is quantized.
            by_layer: whether only one layer of the base at a time is in memory.

        Returns:
            None if the stored export is not rounded either, or if this cannot be done in memory.
        """

    def base_moved(self, plan: PlanT) -> BaseMoved | None:
        """How much the storage of the base rounds, for a comparison in memory.

        Args:
            plan: what `plan` gave.

        Returns:
            None if edited weights are not requantized.
        """

    def check(self, directory: Path, base: Base, edit: SpectralEdit, plan: PlanT) -> TensorCheck:
        """Compares the tensors and the side files of a written export with the base's and with the plan.

        Args:
            directory: the export.
            base: the base.
            edit: the edit that the export should hold.
            plan: what `plan` gave for that edit.

        Raises:
            InputError: the export is damaged.
        """

    def base_of(self, directory: Path) -> str | None:
        """The base that the output itself names, a Hub id or a path; None if outputs of the format name none.

        Args:
            directory: the output.

        Raises:
            InputError: the output should name a base, and does not.
        """


def export_format(name: str) -> ExportFormat[Any, Any]:
    """The format of a name.

    Args:
        name: one of `sea_export.options.FORMATS`.

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
