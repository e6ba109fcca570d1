"""`--format merged`: a plain checkpoint of the base's architecture with the edit folded into its weights.

Heavy imports are made in the methods, so that wrong options are reported at once.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sea_export.export.formats import BaseMoved, EditInMemory, EditNeeds, ExportFormat, TensorCheck
from sea_export.export.held_edits import check_foldable
from sea_export.options import ExportOptions, FitOptions

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from sea_export.edit.spectral_edit import SpectralEdit
    from sea_export.export.merged.merge_plan import MergePlan
    from sea_export.export.stored_projections import StoredProjections
    from sea_export.export.write_report import WriteReport
    from sea_export.model.base import Base
    from sea_export.model.targets import Target

__all__ = ["FORMAT"]


class _Merged:
    name = "merged"
    library = "transformers"
    tags: tuple[str, ...] = ()
    loads_beside_base = False
    loads_in_transformers = True
    names_location = False
    runs_code = False
    rounds_weights = True
    changes_source = False
    details_key: str | None = None

    def check_options(self, fit: FitOptions, export: ExportOptions) -> None:
        check_foldable(fit)

    def locate(
        self, base: Base, targets: Iterable[Target], needs: EditNeeds, options: ExportOptions
    ) -> StoredProjections:
        from sea_export.export.merged.merge_plan import check_unquantized, with_new_biases
        from sea_export.export.stored_projections import find_stored_projections
        from sea_export.model.compatible_config import added_entries
        from sea_export.model.quantized_storage import quantized_weights

        if not options.requantize:
            check_unquantized(base)
        quantized = quantized_weights(base) if options.requantize else None
        components = needs.constant_components if needs.constant else frozenset()
        stored = find_stored_projections(
            targets,
            base,
            needs_bias=needs.constant,
            components=components,
            quantized=quantized,
            weights=needs.weights,
        )
        if needs.constant:
            stored = with_new_biases(stored, base, components)
        if not options.compatible_config:
            return stored
        return replace(
            stored, config_changes={**stored.config_changes, **added_entries(base.checkpoint.config, base.name)}
        )

    def plan(
        self,
        edit: SpectralEdit,
        base: Base,
        located: StoredProjections,
        options: ExportOptions,
        load: Callable[[], PreTrainedModel],
    ) -> MergePlan:
        from sea_export.export.merged.merge_plan import plan_merge

        return plan_merge(edit, located, base)

    def remarks(self, plan: MergePlan) -> list[str]:
        return []

    def details(self, plan: MergePlan) -> dict[str, Any]:
        return {}

    def disk_bytes(self, base: Base, output: Path, options: ExportOptions, *, targets: int = 0, rank: int = 0) -> int:
        return base.checkpoint.size

    def write(
        self, plan: MergePlan, base: Base, destination: Path, progress: Callable[[int], None] | None = None
    ) -> WriteReport:
        from sea_export.export.merged.merge_writer import write_checkpoint

        return write_checkpoint(
            base.checkpoint,
            destination,
            plan.edits,
            requantized=plan.requantized_tensors,
            additions=plan.additions,
            config_changes=plan.config_changes,
            known_digests=base.files.known_digests(),
            progress=progress,
        )

    def check_before_loading(self, directory: Path, plan: MergePlan, *, trust_remote_code: bool) -> None:
        from sea_export.model.checkpoint import Checkpoint

        Checkpoint.open(directory)

    def stored_dtype(self, base: Base, plan: MergePlan) -> torch.dtype | None:
        return base.checkpoint.coarsest_dtype(plan.edits) if plan.edits else None

    def loading_arguments(self, plan: MergePlan) -> Mapping[str, str | bool]:
        return {}

    def edit_in_memory(self, directory: Path, *, quantized: bool, by_layer: bool) -> EditInMemory | None:
        from sea_export.export.merged.merge_check import with_folded_weights

        return with_folded_weights

    def base_moved(self, plan: MergePlan) -> BaseMoved | None:
        from sea_export.export.merged.merge_check import with_moved_weights

        return functools.partial(with_moved_weights, plan=plan) if plan.requantized else None

    def check(self, directory: Path, base: Base, edit: SpectralEdit, plan: MergePlan) -> TensorCheck:
        from sea_export.export.merged.merge_check import check_merge

        return check_merge(directory, base.checkpoint, plan, converted=base.converted)

    def base_of(self, directory: Path) -> str | None:
        return None


FORMAT: ExportFormat[StoredProjections, MergePlan] = _Merged()
