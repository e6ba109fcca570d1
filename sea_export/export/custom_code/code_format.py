"""`--format custom-code`: the weights of the base, the tensors of the edit, and code that applies it.

It can hold every edit. Heavy imports are made in the methods, so that wrong options are reported at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sea_export.errors import InputError
from sea_export.export.formats import BaseMoved, EditInMemory, EditNeeds, ExportFormat, TensorCheck
from sea_export.export.held_edits import check_blocks_alone, check_outputs_alone
from sea_export.options import ExportOptions, FitOptions

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from sea_export.edit.spectral_edit import SpectralEdit
    from sea_export.export.custom_code.code_plan import CodePlan, EditedModules
    from sea_export.export.write_report import WriteReport
    from sea_export.model.base import Base
    from sea_export.model.targets import Target

__all__ = ["FORMAT"]


class _CustomCode:
    name = "custom-code"
    library = "transformers"
    tags: tuple[str, ...] = ("custom_code",)
    loads_beside_base = False
    loads_in_transformers = True
    names_location = False
    runs_code = True
    # The weights of the base, and the tensors of the edit in float32, are stored as they are, without rounding.
    rounds_weights = False
    changes_source = False
    details_key: str | None = None

    def check_options(self, fit: FitOptions, export: ExportOptions) -> None:
        pass

    def locate(self, base: Base, targets: Iterable[Target], needs: EditNeeds, options: ExportOptions) -> EditedModules:
        from sea_export.export.custom_code.code_plan import find_edited_modules
        from sea_export.model.own_code import other_code

        code = None if base.trust_remote_code else other_code(base.checkpoint.directory)
        if code is not None:
            raise InputError(
                f"{base.name}: it comes with code of its own ({code}), which loading the export would run. Read it, "
                "and allow it with --trust-remote-code, or choose --format merged."
            )
        targets = tuple(targets)
        check_blocks_alone(targets, self.name)
        check_outputs_alone(needs, self.name, "Choose --format merged or adapter.")
        return find_edited_modules(targets, base)

    def plan(
        self,
        edit: SpectralEdit,
        base: Base,
        located: EditedModules,
        options: ExportOptions,
        load: Callable[[], PreTrainedModel],
    ) -> CodePlan:
        from sea_export.export.custom_code.code_plan import plan_custom_code

        return plan_custom_code(edit, base, located, link=options.link)

    def remarks(self, plan: CodePlan) -> list[str]:
        return []

    def details(self, plan: CodePlan) -> dict[str, Any]:
        return {}

    def disk_bytes(self, base: Base, output: Path, options: ExportOptions, *, targets: int = 0, rank: int = 0) -> int:
        """Weight files that are linked, or share their blocks with those of the base, need no bytes."""
        from sea_export.files.cloning import can_clone

        parent, checkpoint = output.resolve().parent, base.checkpoint
        weights = [checkpoint.directory / file for file in checkpoint.weight_files]
        if not parent.is_dir() or weights[0].stat().st_dev != parent.stat().st_dev:
            return checkpoint.size
        if not options.link and not can_clone(weights[0], parent):
            return checkpoint.size
        return checkpoint.size - sum(weight.stat().st_size for weight in weights)

    def write(
        self, plan: CodePlan, base: Base, destination: Path, progress: Callable[[int], None] | None = None
    ) -> WriteReport:
        from sea_export.export.custom_code.code_writer import write_custom_code

        return write_custom_code(base, destination, plan, progress=progress)

    def check_before_loading(self, directory: Path, plan: CodePlan, *, trust_remote_code: bool) -> None:
        from sea_export.export.custom_code.code_check import has_own_code
        from sea_export.export.custom_code.code_plan import CODE_FILE
        from sea_export.model.checkpoint import Checkpoint

        Checkpoint.open(directory)
        if not trust_remote_code and not has_own_code(directory, plan):
            raise InputError(
                f"{directory}: {CODE_FILE} or config.json differs from what this version of sea-export writes for the "
                "edit. Read the code, and allow it with --trust-remote-code."
            )

    def stored_dtype(self, base: Base, plan: CodePlan) -> torch.dtype | None:
        return None

    def loading_arguments(self, plan: CodePlan) -> Mapping[str, str | bool]:
        return {}

    def edit_in_memory(self, directory: Path, *, quantized: bool, by_layer: bool) -> EditInMemory | None:
        return None

    def base_moved(self, plan: CodePlan) -> BaseMoved | None:
        return None

    def check(self, directory: Path, base: Base, edit: SpectralEdit, plan: CodePlan) -> TensorCheck:
        from sea_export.export.custom_code.code_check import check_code_tensors

        return check_code_tensors(directory, base.checkpoint, plan, converted=base.converted)

    def base_of(self, directory: Path) -> str | None:
        return None


FORMAT: ExportFormat[EditedModules, CodePlan] = _CustomCode()
