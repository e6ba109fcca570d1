"""`--format gguf-adapter`: a LoRA and a control vector, which llama.cpp puts on the base while it runs.

Heavy imports are made in the methods, so that wrong options are reported at once.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sea_export.errors import InputError
from sea_export.export.formats import BaseMoved, EditInMemory, EditNeeds, ExportFormat, TensorCheck
from sea_export.export.gguf_adapter.gguf_adapter_limits import NO_ROW_SCALES
from sea_export.export.held_edits import check_blocks_alone, check_foldable, check_outputs_alone
from sea_export.options import ExportOptions, FitOptions

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from sea_export.edit.spectral_edit import SpectralEdit
    from sea_export.export.gguf_adapter.gguf_adapter_plan import AdaptedProjections, GgufAdapterPlan
    from sea_export.export.write_report import WriteReport
    from sea_export.model.architecture import OutputProjection
    from sea_export.model.base import Base
    from sea_export.model.targets import Target

__all__ = ["FORMAT"]


class _GgufAdapter:
    name = "gguf-adapter"
    library = "llama.cpp"
    tags: tuple[str, ...] = ("gguf", "lora")
    loads_beside_base = True
    loads_in_transformers = False
    names_location = False
    runs_code = False
    # It is stored in float32, whatever the types of its base, so that storing it rounds nothing.
    rounds_weights = False
    changes_source = True
    details_key: str | None = "gguf_adapter"

    def check_options(self, fit: FitOptions, export: ExportOptions) -> None:
        check_foldable(fit)
        if fit.edit.normalization != "none" or fit.edit.projections == "positive":
            raise InputError(NO_ROW_SCALES)
        if importlib.util.find_spec("gguf") is None:
            raise InputError("--format: gguf-adapter needs the gguf package. Run: pip install sea-export[gguf].")

    def locate(
        self, base: Base, targets: Iterable[Target], needs: EditNeeds, options: ExportOptions
    ) -> AdaptedProjections:
        from sea_export.export.gguf_adapter.gguf_adapter_plan import locate_for_llama_cpp

        targets = tuple(targets)
        check_blocks_alone(targets, self.name)
        check_outputs_alone(
            needs, self.name, "Choose --format adapter, and convert that with convert_lora_to_gguf.py of llama.cpp."
        )
        return locate_for_llama_cpp(base, targets, needs)

    def plan(
        self,
        edit: SpectralEdit,
        base: Base,
        located: AdaptedProjections,
        options: ExportOptions,
        load: Callable[[], PreTrainedModel],
    ) -> GgufAdapterPlan:
        from sea_export.export.gguf_adapter.gguf_adapter_plan import plan_gguf_adapter

        return plan_gguf_adapter(edit, base, located)

    def remarks(self, plan: GgufAdapterPlan) -> list[str]:
        return plan.remarks()

    def details(self, plan: GgufAdapterPlan) -> dict[str, Any]:
        return plan.details()

    def disk_bytes(self, base: Base, output: Path, options: ExportOptions, *, targets: int = 0, rank: int = 0) -> int:
        from sea_export.export.adapter.adapter_plan import estimated_bytes

        return estimated_bytes(base, targets, rank)

    def write(
        self, plan: GgufAdapterPlan, base: Base, destination: Path, progress: Callable[[int], None] | None = None
    ) -> WriteReport:
        from sea_export.export.gguf_adapter.gguf_adapter_writer import write_gguf_adapter

        return write_gguf_adapter(plan, base, destination)

    def check_before_loading(self, directory: Path, plan: GgufAdapterPlan, *, trust_remote_code: bool) -> None:
        from sea_export.export.gguf_adapter.gguf_adapter_check import check_headers

        check_headers(directory, plan)

    def stored_dtype(self, base: Base, plan: GgufAdapterPlan) -> torch.dtype | None:
        return None

    def loading_arguments(self, plan: GgufAdapterPlan) -> Mapping[str, str | bool]:
        return {}

    def edit_in_memory(self, directory: Path, *, quantized: bool, by_layer: bool) -> EditInMemory | None:
        from sea_export.export.gguf_adapter.applied import with_gguf_adapter

        def put_on(
            model: PreTrainedModel, edit: SpectralEdit, projections: Sequence[OutputProjection]
        ) -> AbstractContextManager[None]:
            return with_gguf_adapter(model, projections, directory)

        return put_on

    def base_moved(self, plan: GgufAdapterPlan) -> BaseMoved | None:
        return None

    def check(self, directory: Path, base: Base, edit: SpectralEdit, plan: GgufAdapterPlan) -> TensorCheck:
        from sea_export.export.gguf_adapter.gguf_adapter_check import check_gguf_adapter

        return check_gguf_adapter(directory, plan)

    def base_of(self, directory: Path) -> str | None:
        return None


FORMAT: ExportFormat[AdaptedProjections, GgufAdapterPlan] = _GgufAdapter()
