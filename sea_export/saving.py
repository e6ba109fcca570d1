"""Saving: plans, writes, verifies and describes an export. This module alone knows all of these steps."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sea_export.capture.offloaded import StoredModel, check_layers_loadable
from sea_export.capture.opened_model import OpenedModel
from sea_export.capture.progress_callback import ProgressCallback, progress_of
from sea_export.cards.base_card import base_facts, base_metadata, license_warning
from sea_export.cards.card_metadata import is_fitted
from sea_export.cards.description import check_describable, write_description
from sea_export.edit.spectral_edit import SpectralEdit
from sea_export.errors import InputError, SeaExportError
from sea_export.evaluation.benchmark import Progress, no_progress
from sea_export.export.formats import EditNeeds, Located, export_format
from sea_export.export.manifest import MANIFEST, fits_of, make_manifest
from sea_export.export.output import EDIT_DIRECTORY, check_output, check_room, staged_output
from sea_export.export.write_report import NOTHING_WRITTEN, WriteReport
from sea_export.model.base import Base, open_base
from sea_export.model.checkpoint import CARD
from sea_export.model.constant_place import advice_on_constants
from sea_export.model.run_options import check_conversion
from sea_export.model.targets import Target
from sea_export.options import ExportOptions, FitOptions
from sea_export.verification.clean_process import CleanProcess
from sea_export.verification.verification import Verification
from sea_export.verification.verify_export import base_to_verify, model_to_verify, unrounded_model, verify_export

if TYPE_CHECKING:
    from pandas import DataFrame
    from transformers import PreTrainedModel

__all__ = ["SaveResult", "check_room_for", "locate_fit", "save", "save_checkpoint"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SaveResult:
    """The result of a save: what was written, and its verification if there was one."""

    output: Path
    format: str
    report: WriteReport
    verification: Verification | None
    edit: SpectralEdit
    """The edit that was baked. It names its base."""

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain JSON data, without tensors."""
        report = self.report
        return {
            "output": str(self.output),
            "format": self.format,
            "edit": self.edit.to_dict(),
            "verification": None if self.verification is None else self.verification.to_dict(),
            "files": dict(report.digests),
            "tensors_edited": list(report.edited),
            "tensors_unchanged": list(report.unchanged),
            "tensors_added": list(report.added),
        }

    def to_frame(self) -> DataFrame:
        """A row for each layer edit, as a data frame of pandas.

        Raises:
            InputError: pandas is not installed.
        """
        return self.edit.to_frame()


def save(
    edit: SpectralEdit,
    base: str | Path | OpenedModel,
    output: str | Path,
    *,
    format: str = ExportOptions.format,
    adapter_rank: int | None = ExportOptions.adapter_rank,
    adapter_padding: bool = ExportOptions.adapter_padding,
    gguf_type: str = ExportOptions.gguf_type,
    overwrite: bool = ExportOptions.overwrite,
    force: bool = ExportOptions.force,
    verify: bool = ExportOptions.verify,
    link: bool = ExportOptions.link,
    requantize: bool = ExportOptions.requantize,
    compatible_config: bool = ExportOptions.compatible_config,
    base_id: str | None = ExportOptions.base_id,
    trust_remote_code: bool = False,
    layerwise: bool | None = None,
    revision: str | None = None,
    dtype: torch.dtype | None = None,
    dequantize: bool = False,
    progress: ProgressCallback | None = None,
) -> SaveResult:
    """Bakes an edit into a checkpoint that plain transformers loads.

    Args:
        edit: the edit. `sea_export.compose` combines several edits into one.
        base: the model it was fitted on: a Hub id, a local directory, a `.gguf` file, or what `sea_export.load` opened.
        output: the directory to write.
        format: `merged`, `adapter`, `custom-code`, `gguf` for a `.gguf` base, or `gguf-adapter`. With `adapter`, a
            local base is named by its absolute path, because it could not be loaded otherwise. Give a Hub id to publish
            an adapter.
        adapter_rank: the largest rank of an adapter; None for an exact one.
        adapter_padding: with `adapter`, fill its factors with zeros up to one rank for all modules.
        gguf_type: with `gguf`, how edited weights are stored: `auto`, `same`, `Q8_0`, `F16`, `BF16` or `F32`.
        overwrite: replace a checkpoint that sea-export wrote before.
        force: accept a base other than the one that the edit was fitted on.
        verify: verify the output before it gets its final name.
        link: with `custom-code`, make hard links to the weight files of the base instead of copies.
        requantize: with `merged`, fold into quantized weights of the base in their own storage.
        compatible_config: with `merged`, add entries of config.json that programs other than transformers look for: see
            `sea_export.model.compatible_config`.
        base_id: the Hub id of which a local base is a copy, for the model card; None to take it from its files.
        trust_remote_code: whether code that comes with the base may run.
        layerwise: whether only one layer of the base at a time is in memory; None decides by the free memory.
        revision: the revision of the base on the Hub.
        dtype: the dtype in which a `.gguf` or dequantized base is written (bfloat16 if None).
        dequantize: convert the quantized weights of the base to plain ones.
        progress: told a stage, how much of it is done, and how much there is to do.

    Returns:
        What was written.

    Raises:
        InputError: the edit, the base or the output is not usable. Nothing was written.
        SeaExportError: writing or the verification failed, or the base changed meanwhile. Nothing was kept.
    """
    options = ExportOptions(
        format=format,
        adapter_rank=adapter_rank,
        adapter_padding=adapter_padding,
        gguf_type=gguf_type,
        overwrite=overwrite,
        force=force,
        verify=verify,
        link=link,
        requantize=requantize,
        compatible_config=compatible_config,
        base_id=base_id,
    )
    check_conversion(dequantize=dequantize, requantize=requantize)
    if isinstance(base, OpenedModel) and (revision is not None or dtype is not None or dequantize or trust_remote_code):
        raise InputError(
            "base: it is open, and is not opened again. Leave revision, dtype, dequantize and trust_remote_code out."
        )
    check_output(Path(output), overwrite=overwrite)
    with (
        nullcontext(base.base)
        if isinstance(base, OpenedModel)
        else open_base(
            str(base), revision=revision, dtype=dtype, dequantize=dequantize, trust_remote_code=trust_remote_code
        ) as opened
    ):
        if warning := license_warning(opened.name, base_metadata(opened)):
            logger.warning("%s.", warning)
        check_room_for(opened, Path(output), options)
        with CleanProcess() as process:
            if verify and export_format(format).loads_in_transformers:
                process.begin()  # it imports what it needs while the output is written
            return save_checkpoint(
                *(edit, opened, Path(output), options),
                layerwise=layerwise,
                process=process,
                progress=progress_of(progress),
            )


def check_room_for(base: Base, output: Path, options: ExportOptions) -> None:
    """Refuses an output that has no place: on its disk, beside its base, or for a file that the base has.

    Args:
        base: the base.
        output: the directory to be written.
        options: how the edit is to be baked.

    Raises:
        InputError: the output lies inside its base or around it, does not fit on its disk, or would have two files of
            one name.
    """
    format = export_format(options.format)
    check_room(output, base.paths, needed_bytes=format.disk_bytes(base, output, options))
    copied = () if format.loads_beside_base else base.checkpoint.side_files()
    taken = next((file for file in copied if file.partition("/")[0] in (EDIT_DIRECTORY, MANIFEST, CARD)), None)
    if taken is not None:
        raise InputError(
            f"{base.name}: it has {taken}, and the output would have something of its own under that name. Rename it, "
            "or choose --format adapter."
        )


def locate_fit(base: Base, targets: Sequence[Target], fit: FitOptions, options: ExportOptions) -> Located:
    """Finds where a base has what a fit will edit, before any weight is loaded.

    Args:
        base: the base.
        targets: those that the fit chooses.
        fit: the options of the fit.
        options: how the edit is to be baked.

    Returns:
        What `ExportFormat.locate` gave, for `save_checkpoint`.

    Raises:
        InputError: a target is not found, or the format cannot hold such an edit of it.
        SeaExportError: the numerical check of the fold failed.
    """
    located: Located = export_format(options.format).locate(base, targets, EditNeeds.of_fit(fit), options)
    return located


def save_checkpoint(
    edit: SpectralEdit,
    base: Base,
    output: Path,
    options: ExportOptions,
    *,
    layerwise: bool | None = None,
    located: Located | None = None,
    model: PreTrainedModel | StoredModel | None = None,
    process: CleanProcess | None = None,
    progress: Progress = no_progress,
    announce: Callable[[str], None] | None = None,
) -> SaveResult:
    """Like `save`, with a base that is already open, and perhaps in memory.

    The caller has checked the output (`check_output`, `check_room_for`).

    Args:
        edit: the edit.
        base: the base.
        output: the directory to write.
        options: how the edit is to be baked.
        layerwise: whether only one layer of the base at a time is in memory; None decides by the free memory.
        located: what `locate_fit` found for the edit's targets; None if it was not called.
        model: the base as the fit used it, or None. The verification uses it, and may change its dtype.
        process: the one in which plain transformers loads the output to verify it; None to start one for it.
        progress: shows the progress of each stage. It is given the stage, and the number of bytes that it writes, or 0.
        announce: called with each line that the user should read before anything is written.

    Returns:
        What was written.

    Raises:
        InputError: see `save`.
        SeaExportError: see `save`.
    """
    format = export_format(options.format)
    if not format.runs_code and edit.why_unfoldable:
        raise InputError(edit.why_unfoldable)
    if layerwise and options.verify:
        check_layers_loadable(base)
    fitted = all(map(is_fitted, fits_of(edit.provenance)))
    # A fit with `--layers signature:K` edits fewer targets than were located before it.
    if located is None or {one.target for one in located.projections} != set(edit.targets):
        with advice_on_constants(fitted=fitted):
            located = format.locate(base, edit.targets, EditNeeds.of_edit(edit), options)

    def load() -> PreTrainedModel:
        nonlocal model
        model = loaded = unrounded_model(base, model)
        return loaded

    with advice_on_constants(fitted=fitted), progress("Preparing the edited weights", 0):
        plan = format.plan(edit, base, located, options, load)
    facts = base_facts(base, options.base_id)
    details = {} if format.details_key is None else {format.details_key: format.details(plan)}

    def describe(described: SpectralEdit, report: WriteReport, verification: Verification | None) -> dict[str, Any]:
        record = None if verification is None else verification.record()
        return make_manifest(described, base, options, report, verification=record, details=details, base_facts=facts)

    check_describable(describe(edit, NOTHING_WRITTEN, None), "sea_edit.json", "Fit the edit again.")
    if announce is not None:
        for line in format.remarks(plan):
            announce(line)
    with staged_output(output, overwrite=options.overwrite) as staging:
        logger.debug("writing %s", options.format)
        with progress("Writing", base.checkpoint.size) as advance:
            report = format.write(plan, base, staging, advance)
        base.files.check()  # what was fitted on is what was written
        edit = _name_base(edit, base, report, force=options.force)
        verification = None
        if options.verify:
            logger.debug("verifying")
            with (
                CleanProcess() if process is None else nullcontext(process) as clean,
                base_to_verify(base, format) as exact,
                progress("Verifying", 0),
            ):
                known = model if exact is base else None
                verified = model_to_verify(exact, layerwise, known, output.resolve().parent)
                verification = verify_export(staging, exact, edit, format, plan, verified, clean)
            if not verification.passed:
                base.files.check()  # a change would be the reason
                raise SeaExportError(
                    f"{output}: its verification failed, and nothing was kept: {'; '.join(verification.problems)}. "
                    "Choose another edit; --no-verify would keep it."
                )
        logger.debug("written%s", " and verified" if options.verify else "")
        with progress("Writing the model card and the digests", 0):
            edit.save(staging / EDIT_DIRECTORY)
            write_description(staging, describe(edit, report, verification))
        base.files.check()
    return SaveResult(output, options.format, report, verification, edit)


def _name_base(edit: SpectralEdit, base: Base, report: WriteReport, *, force: bool) -> SpectralEdit:
    """The edit with the digests of its base in its provenance.

    The weights that it was fitted on must be those that were copied.
    """
    digests = {file: report.base_digests[file] for file in base.checkpoint.weight_files}
    fitted_on = edit.provenance.get("base") or {}
    known = fitted_on.get("weights")
    if known is not None and sorted(known.values()) != sorted(digests.values()) and not force:
        raise InputError(
            f"{base.name}: its weights are not those of {fitted_on.get('name')}, on which the edit was fitted. Give "
            "the base that it was fitted on, or --force."
        )
    named = {"name": base.name, "revision": base.revision, "weights": digests}
    if known is not None and sorted(known.values()) != sorted(digests.values()):
        named["fitted_on"] = dict(fitted_on)
    return replace(edit, provenance={**edit.provenance, "base": named})
