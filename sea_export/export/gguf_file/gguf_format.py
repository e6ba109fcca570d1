"""`--format gguf`: the GGUF file of the base, with the edit folded into some of its tensors.

Heavy imports are made in the methods, so that wrong options are reported at once.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sea_export.errors import InputError
from sea_export.export.formats import BaseMoved, EditInMemory, EditNeeds, ExportFormat, TensorCheck
from sea_export.export.held_edits import check_blocks_alone, check_foldable, check_outputs_alone
from sea_export.options import ExportOptions, FitOptions

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from sea_export.edit.spectral_edit import SpectralEdit
    from sea_export.export.gguf_file.gguf_plan import GgufPlan, GgufProjections
    from sea_export.export.write_report import WriteReport
    from sea_export.model.base import Base
    from sea_export.model.targets import Target

__all__ = ["FORMAT"]


def _gguf_of(base: Base) -> Path:
    """The only file of a base, or the first of its parts. Raises InputError for a base that is no GGUF file."""
    if base.gguf is None:
        raise InputError(
            f"--format: gguf changes a .gguf file, and {base.name} is none. Choose --format merged, and convert its "
            "output with llama.cpp's convert_hf_to_gguf.py."
        )
    return base.gguf


class _Gguf:
    name = "gguf"
    library = "transformers"
    tags: tuple[str, ...] = ("gguf",)
    loads_beside_base = False
    loads_in_transformers = True
    names_location = False
    runs_code = False
    rounds_weights = True
    changes_source = True
    details_key: str | None = "gguf"

    def check_options(self, fit: FitOptions, export: ExportOptions) -> None:
        check_foldable(fit)

    def locate(
        self, base: Base, targets: Iterable[Target], needs: EditNeeds, options: ExportOptions
    ) -> GgufProjections:
        from sea_export.export.gguf_file.gguf_plan import locate_in_gguf

        targets = tuple(targets)
        check_blocks_alone(targets, self.name)
        check_outputs_alone(
            needs, self.name, "Choose --format merged, and convert that with convert_hf_to_gguf.py of llama.cpp."
        )
        return locate_in_gguf(base, _gguf_of(base), targets, needs, options)

    def plan(
        self,
        edit: SpectralEdit,
        base: Base,
        located: GgufProjections,
        options: ExportOptions,
        load: Callable[[], PreTrainedModel],
    ) -> GgufPlan:
        from sea_export.export.gguf_file.gguf_plan import plan_gguf

        return plan_gguf(edit, base, located, options)

    def remarks(self, plan: GgufPlan) -> list[str]:
        return plan.remarks()

    def details(self, plan: GgufPlan) -> dict[str, Any]:
        return plan.details()

    def disk_bytes(self, base: Base, output: Path, options: ExportOptions, *, targets: int = 0, rank: int = 0) -> int:
        if base.gguf is None:
            return base.checkpoint.size  # `locate` refuses it
        from sea_export.export.gguf_file.gguf_plan import estimated_bytes
        from sea_export.model.gguf_parts import read_parts

        return estimated_bytes(read_parts(base.gguf), options, targets)

    def write(
        self, plan: GgufPlan, base: Base, destination: Path, progress: Callable[[int], None] | None = None
    ) -> WriteReport:
        from sea_export.export.gguf_file.gguf_writer import write_gguf
        from sea_export.export.modelfile import write_modelfile
        from sea_export.files.digests import file_digest

        report = write_gguf(plan.parts, destination, plan.changes, progress)
        plan.located.files.check()  # what was checked and planned is what was written
        written = {name: file_digest(destination / name) for name in write_modelfile(destination, plan.modelfile)}
        return replace(
            report,
            base_digests={**base.weight_digests, **report.base_digests},
            digests={**report.digests, **written},
        )

    def check_before_loading(self, directory: Path, plan: GgufPlan, *, trust_remote_code: bool) -> None:
        from sea_export.export.gguf_file.gguf_check import written_parts

        written_parts(directory, plan)

    def stored_dtype(self, base: Base, plan: GgufPlan) -> torch.dtype | None:
        return base.dtype

    def loading_arguments(self, plan: GgufPlan) -> Mapping[str, str | bool]:
        return plan.loading_arguments

    def edit_in_memory(self, directory: Path, *, quantized: bool, by_layer: bool) -> EditInMemory | None:
        from sea_export.export.merged.merge_check import with_folded_weights

        return with_folded_weights

    def base_moved(self, plan: GgufPlan) -> BaseMoved | None:
        if not any(plan.changes_weight(weight) for one in plan.located.projections for weight in one.weights):
            return None
        from sea_export.export.gguf_file.moved_weights import with_moved_weights

        return functools.partial(with_moved_weights, plan=plan)

    def check(self, directory: Path, base: Base, edit: SpectralEdit, plan: GgufPlan) -> TensorCheck:
        from sea_export.export.gguf_file.gguf_check import check_gguf

        return check_gguf(directory, plan)

    def base_of(self, directory: Path) -> str | None:
        return None


FORMAT: ExportFormat[GgufProjections, GgufPlan] = _Gguf()
