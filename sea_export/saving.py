"""Baking an edit into a checkpoint: `save`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from sea_export.cards.base_card import base_metadata, license_warning
from sea_export.cards.description import write_description
from sea_export.edit.spectral_edit import SpectralEdit
from sea_export.errors import InputError, SeaExportError
from sea_export.export.adapter.adapter_plan import AdapterPlan, check_adapter, plan_adapter
from sea_export.export.adapter.adapter_writer import write_adapter
from sea_export.export.custom_code.code_check import other_code
from sea_export.export.custom_code.code_plan import CodePlan, EditedModules, find_edited_modules, plan_custom_code
from sea_export.export.custom_code.code_writer import write_custom_code
from sea_export.export.manifest import make_manifest
from sea_export.export.merged.merge_plan import MergePlan, plan_merge
from sea_export.export.merged.merge_writer import write_checkpoint
from sea_export.export.output import EDIT_DIRECTORY, check_output, staged_output
from sea_export.export.stored_projections import StoredProjections, find_stored_projections
from sea_export.export.write_report import WriteReport
from sea_export.model.base import BaseModel, resolve_base
from sea_export.model.load_model import auto_classes, load_config, load_model, load_tokenizer
from sea_export.model.targets import Target
from sea_export.options import FitOptions, SaveOptions

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from sea_export.capture.offloaded import StoredModel
    from sea_export.verification.verify import Verification

__all__ = [
    "SaveResult",
    "checkpoint_bytes",
    "find_targets",
    "needed_bytes",
    "plan_export",
    "save",
    "save_checkpoint",
    "targets_of_fit",
]

logger = logging.getLogger(__name__)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SaveResult:
    """What was written."""

    output: Path
    format: str
    report: WriteReport
    verification: Verification | None


def save(
    edit: SpectralEdit,
    base: str | Path,
    output: str | Path,
    *,
    format: str = SaveOptions.format,
    adapter_rank: int | None = SaveOptions.adapter_rank,
    overwrite: bool = SaveOptions.overwrite,
    force: bool = SaveOptions.force,
    verify: bool = SaveOptions.verify,
    trust_remote_code: bool = SaveOptions.trust_remote_code,
    layerwise: bool | None = SaveOptions.layerwise,
    revision: str | None = None,
    dtype: torch.dtype | None = None,
    dequantize: bool = False,
) -> SaveResult:
    """Bakes an edit into a checkpoint that plain transformers loads.

    Args:
        edit: the edit; `sea_export.compose` makes one of several.
        base: the model it was fitted on: a Hub id, a local directory, or a `.gguf` file.
        output: the directory to write.
        format: `merged`, `adapter` or `custom-code`. An adapter names a local base by its absolute path, without which
            it could not be loaded: give a Hub id to publish it.
        adapter_rank: the largest rank of an adapter; None for an exact one.
        overwrite: replace a checkpoint that sea-export wrote before.
        force: accept a base other than the one that the edit was fitted on.
        verify: verify before the output appears.
        trust_remote_code: whether code that comes with the base may run.
        layerwise: whether one layer of the base at a time is in memory; None chooses by how much memory there is.
        revision: the base's revision on the Hub.
        dtype: the dtype in which a `.gguf` or dequantized base is written out (default bfloat16).
        dequantize: make plain weights of a quantized base's.

    Raises:
        InputError: the edit, the base or the output does not allow it; nothing was written.
        SeaExportError: the write or the verification failed; nothing was left behind.
    """
    options = SaveOptions(
        format=format,
        adapter_rank=adapter_rank,
        overwrite=overwrite,
        force=force,
        verify=verify,
        trust_remote_code=trust_remote_code,
        layerwise=layerwise,
    )
    check_output(Path(output), overwrite=overwrite, needed_bytes=0)
    with resolve_base(str(base), revision=revision, dtype=dtype, dequantized=dequantize) as resolved:
        if warning := license_warning(resolved.name, base_metadata(resolved)):
            logger.warning("%s", warning)
        return save_checkpoint(edit, resolved, Path(output), options)


def save_checkpoint(
    edit: SpectralEdit,
    base: BaseModel,
    output: Path,
    options: SaveOptions,
    *,
    stored: StoredProjections | EditedModules | None = None,
    model: PreTrainedModel | StoredModel | None = None,
    progress: Callable[[int], None] | None = None,
    announce: Callable[[str], None] | None = None,
) -> SaveResult:
    """`save` with a resolved base, and the base in memory if it is there already.

    Args:
        edit: the edit.
        base: the resolved base.
        output: the directory to write.
        options: how.
        stored: what `find_targets` found for the edit's targets, if that was asked before.
        model: the base as it was fitted, for verification; it is left in another dtype than it came in.
        progress: told the number of bytes written since the last call.
        announce: told what is to be known before anything is written, a line at a time.

    Raises:
        InputError: see `save`.
        SeaExportError: see `save`.
    """
    check_output(output, overwrite=options.overwrite, needed_bytes=needed_bytes(base, output, options.format))
    if options.format != "custom-code" and edit.why_unfoldable:
        raise InputError(edit.why_unfoldable)
    stored = stored or find_targets(edit.targets, base, options, needs_bias=edit.needs_bias)

    def load() -> PreTrainedModel:
        nonlocal model
        if not isinstance(model, nn.Module):
            model = load_model(base, trust_remote_code=options.trust_remote_code)
        return model

    plan = plan_export(edit, base, stored, options, load)
    loaded_by = auto_classes(load_config(base, trust_remote_code=options.trust_remote_code))[0].__name__
    if announce is not None and isinstance(plan, AdapterPlan):
        for line in plan.remarks():
            announce(line)
    with staged_output(output, overwrite=options.overwrite) as staging:
        logger.debug("writing %s", options.format)
        report = _write(plan, base, stored, staging, progress)
        edit = _name_base(edit, base, report, force=options.force)
        verification = None
        if options.verify:
            from sea_export.verification.verify import model_to_verify, verify_export

            tokenizer = load_tokenizer(base, trust_remote_code=options.trust_remote_code)
            logger.debug("verifying")
            verified = model_to_verify(base, options, model, output.resolve().parent)
            verification = verify_export(staging, base.checkpoint, edit, plan, verified, tokenizer)
            if not verification.passed:
                raise SeaExportError(
                    f"verification failed, and nothing was kept (--no-verify keeps it): "
                    f"{'; '.join(verification.problems)}"
                )
        logger.debug("written%s", " and verified" if options.verify else "")
        edit.save(staging / EDIT_DIRECTORY)
        details = {"adapter": plan.details()} if isinstance(plan, AdapterPlan) else {}
        manifest = make_manifest(edit, base, options, report, verification, details, model_class=loaded_by)
        write_description(staging, manifest)
    return SaveResult(output, options.format, report, verification)


def find_targets(
    targets: Iterable[Target], base: BaseModel, options: SaveOptions, *, needs_bias: bool
) -> StoredProjections | EditedModules:
    """Finds where a base has the places that an edit edits, as the format needs it, without loading any weight.

    Args:
        targets: the places to edit.
        base: the resolved base.
        options: how the edit is to be baked.
        needs_bias: whether the edit adds a constant (`center="affine"`).

    Raises:
        InputError: a place is not found, or the format cannot hold an edit of it.
        SeaExportError: a fold could not be proved.
    """
    if options.format == "custom-code":
        code = None if options.trust_remote_code else other_code(base.checkpoint.directory)
        if code is not None:
            raise InputError(
                f"{base.name} comes with code of its own ({code}), which loading the export would run: read it, and "
                "allow it with --trust-remote-code, or choose --format merged"
            )
        return find_edited_modules(targets, base)
    return find_stored_projections(
        targets,
        base.checkpoint,
        load_config(base, trust_remote_code=options.trust_remote_code),
        needs_bias=needs_bias,
        format=options.format,
        trust_remote_code=options.trust_remote_code,
    )


def targets_of_fit(
    targets: Iterable[Target], base: BaseModel, options: FitOptions, saving: SaveOptions
) -> StoredProjections | EditedModules:
    """`find_targets` of what a fit will edit, found to have room for that edit, before it is made.

    Args:
        targets: the places to edit.
        base: the resolved base.
        options: of the fit.
        saving: how the edit is to be baked.

    Raises:
        InputError: see `find_targets`.
        SeaExportError: see `find_targets`.
    """
    stored = find_targets(targets, base, saving, needs_bias=options.center == "affine")
    if saving.format == "adapter":
        assert isinstance(stored, StoredProjections)
        check_adapter(
            base,
            stored,
            needs_bias=options.center == "affine",
            scaled=options.edit.normalization != "none" and saving.adapter_rank is None,
        )
    return stored


def plan_export(
    edit: SpectralEdit,
    base: BaseModel,
    stored: StoredProjections | EditedModules,
    options: SaveOptions,
    load: Callable[[], PreTrainedModel],
) -> MergePlan | AdapterPlan | CodePlan:
    """Works out what an export consists of, before anything is written.

    Args:
        edit: the edit.
        base: the resolved base.
        stored: what `find_targets` found for the edit's targets.
        options: how.
        load: gives the base in memory, if the format needs it.

    Raises:
        InputError: the format cannot hold the edit.
    """
    if isinstance(stored, EditedModules):
        return plan_custom_code(edit, base, stored)
    if options.format == "adapter":
        return plan_adapter(edit, base, stored, rank=options.adapter_rank, load=load)
    return plan_merge(edit, stored, base.checkpoint)


def _write(
    plan: MergePlan | AdapterPlan | CodePlan,
    base: BaseModel,
    stored: StoredProjections | EditedModules,
    staging: Path,
    progress: Callable[[int], None] | None,
) -> WriteReport:
    if isinstance(plan, CodePlan):
        return write_custom_code(base.checkpoint, staging, plan, progress=progress)
    if isinstance(plan, AdapterPlan):
        return write_adapter(plan, base, staging)
    return write_checkpoint(
        base.checkpoint,
        staging,
        plan.edits,
        additions=plan.additions,
        config_changes=plan.config_changes,
        progress=progress,
    )


def checkpoint_bytes(base: BaseModel) -> int:
    """Bytes of the base's files, which a merged export reads and writes."""
    checkpoint = base.checkpoint
    files = (*checkpoint.weight_files, *checkpoint.side_files())
    return sum((checkpoint.directory / file).stat().st_size for file in files)


def needed_bytes(base: BaseModel, output: Path, format: str) -> int:
    """Bytes of disk that an export needs, about: custom code links the base's weights where it can."""
    if format == "adapter":
        return 0
    parent, directory = output.resolve().parent, base.checkpoint.directory
    if format == "custom-code" and parent.is_dir():
        weights = [(directory / file).stat() for file in base.checkpoint.weight_files]
        linked = sum(weight.st_size for weight in weights if weight.st_dev == parent.stat().st_dev)
        return checkpoint_bytes(base) - linked
    return checkpoint_bytes(base)


def _name_base(edit: SpectralEdit, base: BaseModel, report: WriteReport, *, force: bool) -> SpectralEdit:
    """The edit with its base named by digests: those it was fitted on must be those that were just copied."""
    digests = {file: report.base_digests[file] for file in base.checkpoint.weight_files}
    fitted_on = edit.provenance.get("base") or {}
    known = fitted_on.get("weights")
    if known is not None and sorted(known.values()) != sorted(digests.values()) and not force:
        raise InputError(
            f"the edit was fitted on {fitted_on.get('name')} with other weights than those of {base.name}: "
            "give the base it was fitted on, or --force"
        )
    named = {"name": base.name, "revision": base.revision, "weights": digests}
    if known is not None and sorted(known.values()) != sorted(digests.values()):
        named["fitted_on"] = dict(fitted_on)
    return replace(edit, provenance={**edit.provenance, "base": named})
