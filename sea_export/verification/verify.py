"""Verification: whether an export is the edit that it should be.

Cheap checks come first, and end the verification where they find a problem:

- Files: the output has the files of its manifest and no others, each with the digest that it had when it was written.
  The base has the digests that the manifest names.
- Tensors: in a merged checkpoint exactly the intended tensors differ from the base, each only by the fold, to the last
  bit, and all other bytes are the same. An adapter gives exactly the edited weights. A custom-code export holds the
  tensors of the base and those of the edit.

Then two errors of the predictions are measured separately:

- Fold error: the run-time edit is compared with what the export computes in memory (folded weights, or the adapter on
  the base), both in float32 on the weights of the base.
- Rounding error: the run-time edit is compared with the stored export, loaded by another process, which knows nothing
  of sea-export. For a merged checkpoint it includes the rounding of edited weights to the stored dtype. What computing
  in that dtype changes in the unedited base is measured too.

An adapter of capped rank is an approximation. Its distance from the edit is reported, and it is checked that it is the
best approximation of its rank. A quantized base is computed as it is, in its own dtype.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from sea_export.capture.offloaded import StoredModel, can_load_layers
from sea_export.edit.spectral_edit import SpectralEdit
from sea_export.errors import InputError
from sea_export.export.fetch import fetch_output
from sea_export.export.formats import EditNeeds, ExportFormat, Loading, StorageError, export_format
from sea_export.export.listed_files import check_files
from sea_export.export.manifest import check_base, read_manifest
from sea_export.model.base import Base, is_hub_id, open_base
from sea_export.model.checkpoint import CARD
from sea_export.options import ExportOptions
from sea_export.text import dtype_name
from sea_export.verification.compare import Agreement, compare, comparison_problems, is_quantized
from sea_export.verification.compare_by_layer import compare_by_layer, verified_by_layer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["Verification", "model_to_verify", "unrounded_model", "verify", "verify_export"]

# The names in version 1 of the manifest for some fields of a verification and of an agreement.
_RECORD_NAMES = {"fold_error": "mathematics", "rounding_error": "storage", "top1_agreement": "equal_greedy"}


@dataclass(frozen=True)
class Verification:
    """What a verification found, and what it measured. Nothing is measured where a check of the files or tensors has
    found a problem."""

    dtype: str
    """The dtype in which the base stores the edited tensors, or the name of their storage if they are requantized."""
    problems: tuple[str, ...]
    """What is outside the tolerance or not as planned, each as a clause without a full stop."""
    unchecked: tuple[str, ...]
    """What was not checked, each as a noun phrase."""
    statement: str = ""
    """What the tensors of the export are, in one sentence."""
    changed_tensors: int = 0
    """The number of tensors that differ from the base's, or that it does not have."""
    identical_tensors: int = 0
    """The number of tensors that are the base's, byte for byte."""
    identical_files: int = 0
    """The number of other files that are the base's, byte for byte."""
    weight_error: float | None = None
    """For an adapter: the largest ‖adapted W - W'‖ / ‖W' - W‖ of the weights that it changes."""
    exact: bool = True
    """False for an adapter of capped rank, which is only an approximation."""
    fold_error: Agreement | None = None
    """The run-time edit compared with the export in memory, both in float32."""
    rounding_error: Agreement | None = None
    """The run-time edit (for an adapter of capped rank: the adapter in memory) compared with the stored export, which
    another process loads and computes in float32."""
    base_rounding: Agreement | None = None
    """The unedited base in float32 compared with itself in the stored dtype: the noise that users of the base already
    accept. For quantized weights: compared with itself with edited outputs rounded in another way. For requantized
    weights: compared with itself with these moved at random within what their storage rounds."""
    effect: Agreement | None = None
    """The base compared with the run-time edit: the effect of the edit."""
    storage_errors: Mapping[str, StorageError] = field(default_factory=dict)
    """Name of a requantized weight -> what its storage does to the edit."""

    @property
    def passed(self) -> bool:
        """Whether the export is the edit that it should be."""
        return not self.problems

    @property
    def measured(self) -> bool:
        """Whether the predictions were compared, because files and tensors are as they should be."""
        return self.effect is not None

    def record(self) -> dict[str, Any]:
        """All fields as plain JSON data, under their names in the manifest."""
        return _renamed(asdict(self))


def _renamed(entries: Mapping[str, Any]) -> dict[str, Any]:
    return {
        _RECORD_NAMES.get(name, name): _renamed(value) if isinstance(value, dict) else value
        for name, value in entries.items()
    }


@torch.inference_mode()
def verify_export(
    directory: Path,
    base: Base,
    edit: SpectralEdit,
    format: ExportFormat[Any, Any],
    plan: Any,
    model: PreTrainedModel | StoredModel,
) -> Verification:
    """Verifies the tensors and the predictions of an export.

    Args:
        directory: the export.
        base: the base.
        edit: the edit that it should hold.
        format: its format.
        plan: what `ExportFormat.plan` gave for that edit.
        model: the base in memory, which may have another dtype afterwards; or the base with one layer at a time in
            memory.

    Raises:
        InputError: the export is damaged.
        SeaExportError: plain transformers cannot load the export.
    """
    by_layer = isinstance(model, StoredModel)
    quantized = isinstance(model, nn.Module) and is_quantized(model)
    dtype = format.stored_dtype(base, plan) or base.dtype
    tensors = format.check(directory, base, edit, plan)  # before any library loads the export
    found = Verification(
        dtype=tensors.storage or dtype_name(dtype),
        problems=tensors.problems,
        unchecked=tensors.unchecked,
        statement=tensors.statement,
        changed_tensors=tensors.changed_tensors,
        identical_tensors=tensors.identical_tensors,
        identical_files=tensors.identical_files,
        weight_error=tensors.weight_error,
        exact=tensors.exact,
        storage_errors=tensors.storage_errors,
    )
    if tensors.problems:
        return found
    projections = base.output_projections(edit.targets)
    loading = Loading.of(format, base)
    export_in_memory = format.edit_in_memory(directory, quantized=quantized, by_layer=by_layer)
    moved = format.base_moved(plan)
    if isinstance(model, StoredModel):
        metrics = compare_by_layer(
            directory,
            edit,
            model,
            base.tokenizer,
            projections=projections,
            export_in_memory=export_in_memory,
            exact=tensors.exact,
            loading=loading,
        )
    else:
        metrics = compare(
            directory,
            edit,
            model,
            base.tokenizer,
            dtype,
            projections=projections,
            export_in_memory=export_in_memory,
            exact=tensors.exact,
            loading=loading,
            base_moved=moved,
        )
    coarsest = dtype if format.rounds_weights else torch.float32
    problems = comparison_problems(
        metrics, coarsest, exact=tensors.exact, quantized=quantized, requantized=moved is not None
    )
    return replace(
        found,
        problems=tuple(problems),
        fold_error=metrics["fold_error"],
        rounding_error=metrics["rounding_error"],
        base_rounding=metrics["base_rounding"],
        effect=metrics["effect"],
    )


def verify(
    output: str | Path,
    base: str | Path | None = None,
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
    layerwise: bool | None = None,
) -> Verification:
    """Verifies a checkpoint that sea-export wrote: all its files, its tensors, and its predictions.

    Args:
        output: the checkpoint: a directory, or `REPO_ID` or `REPO_ID@REVISION` on the Hub.
        base: the base model; None for the one in the manifest, if that is a Hub id.
        revision: the revision of the base on the Hub; None for the one in the manifest.
        trust_remote_code: whether code may run that comes with the base, or that is in the output and is not what this
            version of sea-export writes.
        layerwise: whether only one layer of the base at a time is in memory; None decides by the free memory.

    Raises:
        InputError: sea-export did not write the output, the base is not available or another one, or code is not
            trusted.
        SeaExportError: plain transformers cannot load the checkpoint.
    """
    directory = fetch_output(output)
    manifest = read_manifest(directory)
    not_fetched = frozenset({CARD}) if directory != Path(output) else frozenset()
    files = check_files(directory, manifest["files"], not_fetched=not_fetched)
    if files.problems:
        return Verification(manifest["base"]["dtype"], files.problems, (*files.unchecked, "tensors", "predictions"))
    format = export_format(manifest["format"])
    options = ExportOptions(
        format=format.name,
        adapter_rank=manifest.get("adapter", {}).get("rank_cap"),
        requantize=manifest.get("export", {}).get("requantize", False),
    )
    named = manifest["base"]
    base = base or format.base_of(directory)
    if base is None and not is_hub_id(named["name"]):
        raise InputError(f"{output}: it was made from the local model {named['name']}. Say where it is with --base.")
    edit = SpectralEdit.load(directory)
    with open_base(
        str(base or named["name"]),
        revision=revision or named["revision"],
        dtype=getattr(torch, named["dtype"]),
        dequantize=named["dequantized"],
        trust_remote_code=trust_remote_code,
    ) as opened:
        check_base(opened, named["files"])
        located = format.locate(opened, edit.targets, EditNeeds.of_edit(edit), options)
        model: PreTrainedModel | None = None

        def load() -> PreTrainedModel:
            nonlocal model
            model = model or unrounded_model(opened, None)
            return model

        plan = format.plan(edit, opened, located, options, load)
        format.check_before_loading(directory, plan, trust_remote_code=trust_remote_code)
        verified = model_to_verify(opened, layerwise, model, directory.resolve().parent)
        found = verify_export(directory, opened, edit, format, plan, verified)
        return replace(found, unchecked=(*files.unchecked, *found.unchecked))


def model_to_verify(
    base: Base, layerwise: bool | None, model: PreTrainedModel | StoredModel | None, scratch: Path
) -> PreTrainedModel | StoredModel:
    """The base for a verification: in memory if it fits there twice in float32, else with one layer at a time.

    Args:
        base: the base.
        layerwise: whether one layer at a time is in memory; None decides by the free memory.
        model: the base as the fit used it, or None. It is used again, unless its dtype rounds stored weights.
        scratch: the directory for hidden states that do not fit into memory.
    """
    if layerwise is None:
        device = torch.device("cpu") if not isinstance(model, nn.Module) else next(model.parameters()).device
        held = sum(parameter.nbytes for parameter in model.parameters()) if isinstance(model, nn.Module) else 0
        spread = len(set(getattr(model, "hf_device_map", {}).values())) > 1  # its dtype cannot be changed
        layerwise = (spread and can_load_layers(base.config)) or verified_by_layer(base, device, held)
    if layerwise:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        dtype = None if _holds_weights(base.dtype, base) else torch.float32
        return StoredModel(base, dtype=dtype, device=device, scratch=scratch)
    return unrounded_model(base, model)


def unrounded_model(base: Base, model: PreTrainedModel | StoredModel | None) -> PreTrainedModel:
    """The base in memory, with the very numbers that it stores.

    Args:
        base: the base.
        model: the base as it was loaded before, or None. It is used again, unless it is a layer at a time in memory or
            its dtype rounds stored weights.
    """
    if isinstance(model, nn.Module) and not _is_rounded(model, base):
        return model
    loaded = base.load_model(dtype=None if base.is_quantized else torch.float32)
    return base.load_model(dtype=torch.float32) if _is_rounded(loaded, base) else loaded


def _is_rounded(model: PreTrainedModel, base: Base) -> bool:
    """Whether weights of a model were rounded when it was loaded.

    Transformers dequantizes some bases while it loads them, which gives numbers that only float32 holds.
    """
    if base.is_quantized:
        return not is_quantized(model) and model.dtype in (torch.bfloat16, torch.float16)
    return not _holds_weights(model.dtype, base)


def _holds_weights(dtype: torch.dtype, base: Base) -> bool:
    """Whether a dtype can hold every weight of a base, or is float32, in which all is computed."""
    stored = {tensor.dtype for tensor in base.checkpoint.tensors.values()}
    stored &= {torch.float32, torch.bfloat16, torch.float16}
    return all(torch.promote_types(one, dtype) == dtype for one in stored)
