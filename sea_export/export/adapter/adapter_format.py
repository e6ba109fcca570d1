"""`--format adapter`: a PEFT adapter, which is small, can be switched off, and leaves the base unchanged.

Heavy imports are made in the methods, so that wrong options are reported at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sea_export.errors import InputError
from sea_export.export.adapter.adapter_limits import NO_EXACT_ADAPTER
from sea_export.export.formats import BaseMoved, EditInMemory, EditNeeds, ExportFormat, TensorCheck
from sea_export.export.held_edits import check_blocks_alone, check_foldable
from sea_export.options import ExportOptions, FitOptions
from sea_export.text import is_utf8

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from sea_export.edit.spectral_edit import SpectralEdit
    from sea_export.export.adapter.adapter_plan import AdapterPlan
    from sea_export.export.stored_projections import StoredProjections
    from sea_export.export.write_report import WriteReport
    from sea_export.model.architecture import OutputProjection
    from sea_export.model.base import Base
    from sea_export.model.targets import Target

__all__ = ["FORMAT"]


class _Adapter:
    name = "adapter"
    library = "peft"
    tags: tuple[str, ...] = ("lora",)
    loads_beside_base = True
    loads_in_transformers = True
    names_location = True
    runs_code = False
    # It is stored in float32, whatever the dtype of its base, so that storing it rounds nothing.
    rounds_weights = False
    changes_source = False
    details_key: str | None = "adapter"

    def check_options(self, fit: FitOptions, export: ExportOptions) -> None:
        check_foldable(fit)
        if export.adapter_rank is None and fit.edit.projections == "positive" and fit.edit.strength == 1:
            raise InputError(NO_EXACT_ADAPTER)

    def locate(
        self, base: Base, targets: Iterable[Target], needs: EditNeeds, options: ExportOptions
    ) -> StoredProjections:
        from sea_export.export.adapter.adapter_plan import check_adapter
        from sea_export.export.stored_projections import find_stored_projections

        if base.location is not None and not is_utf8(base.location):
            raise InputError(
                f"{base.location}: an adapter tells the path of its base, and this one is not UTF-8 text. Rename the "
                "directory, or choose --format merged."
            )
        targets = tuple(targets)
        check_blocks_alone(targets, self.name)
        stored = find_stored_projections(targets, base, needs_bias=needs.constant, weights=needs.weights)
        scaled = needs.row_scales and options.adapter_rank is None
        check_adapter(base, stored, needs_bias=needs.constant, scaled=scaled)
        return stored

    def plan(
        self,
        edit: SpectralEdit,
        base: Base,
        located: StoredProjections,
        options: ExportOptions,
        load: Callable[[], PreTrainedModel],
    ) -> AdapterPlan:
        from sea_export.export.adapter.adapter_plan import plan_adapter

        return plan_adapter(edit, base, located, rank=options.adapter_rank, pad=options.adapter_padding, load=load)

    def remarks(self, plan: AdapterPlan) -> list[str]:
        return plan.remarks()

    def details(self, plan: AdapterPlan) -> dict[str, Any]:
        return plan.details()

    def disk_bytes(self, base: Base, output: Path, options: ExportOptions, *, targets: int = 0, rank: int = 0) -> int:
        from sea_export.export.adapter.adapter_plan import estimated_bytes

        return estimated_bytes(base, targets, rank)

    def write(
        self, plan: AdapterPlan, base: Base, destination: Path, progress: Callable[[int], None] | None = None
    ) -> WriteReport:
        from sea_export.export.adapter.adapter_writer import write_adapter

        return write_adapter(plan, base, destination)

    def check_before_loading(self, directory: Path, plan: AdapterPlan, *, trust_remote_code: bool) -> None:
        from sea_export.export.adapter.adapter_check import read_adapter

        read_adapter(directory, plan)

    def stored_dtype(self, base: Base, plan: AdapterPlan) -> torch.dtype | None:
        return base.checkpoint.coarsest_dtype(plan.stored_weights) if plan.stored_weights else None

    def loading_arguments(self, plan: AdapterPlan) -> Mapping[str, str | bool]:
        return {}

    def edit_in_memory(self, directory: Path, *, quantized: bool, by_layer: bool) -> EditInMemory | None:
        from sea_export.export.adapter.adapter_check import with_adapter

        # PEFT cannot take an adapter off quantized weights without changing them, and cannot adapt single layers.
        if quantized or by_layer:
            return None

        def put_on(
            model: PreTrainedModel, edit: SpectralEdit, projections: Sequence[OutputProjection]
        ) -> AbstractContextManager[None]:
            return with_adapter(model, directory)

        return put_on

    def base_moved(self, plan: AdapterPlan) -> BaseMoved | None:
        return None

    def check(self, directory: Path, base: Base, edit: SpectralEdit, plan: AdapterPlan) -> TensorCheck:
        from sea_export.export.adapter.adapter_check import check_adapter_weights

        return check_adapter_weights(directory, edit, plan)

    def base_of(self, directory: Path) -> str | None:
        from sea_export.model.adapter_files import base_of_adapter

        return base_of_adapter(directory)


FORMAT: ExportFormat[StoredProjections, AdapterPlan] = _Adapter()
