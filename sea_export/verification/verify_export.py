"""The verification of an export whose base is open: its tensors first, then its predictions.

What is compared, and in which order, is in `sea_export.verification.verify`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from sea_export.capture.offloaded import StoredModel, can_load_layers
from sea_export.edit.spectral_edit import SpectralEdit
from sea_export.export.formats import ExportFormat, Loading
from sea_export.locks import scratch_directory
from sea_export.model.base import Base, open_base
from sea_export.text import dtype_name
from sea_export.verification.clean_process import CleanProcess
from sea_export.verification.compare import compare, comparison_problems, is_quantized
from sea_export.verification.compare_by_layer import compare_by_layer, verified_by_layer
from sea_export.verification.verification import Verification

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["base_to_verify", "model_to_verify", "unrounded_model", "verify_export"]


@torch.inference_mode()
def verify_export(
    directory: Path,
    base: Base,
    edit: SpectralEdit,
    format: ExportFormat[Any, Any],
    plan: Any,
    model: PreTrainedModel | StoredModel,
    process: CleanProcess,
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
        process: the one in which plain transformers loads the export, if it does.

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
    loading = Loading.of(format, base, plan)
    export_in_memory = format.edit_in_memory(directory, quantized=quantized, by_layer=by_layer)
    moved = format.base_moved(plan)
    with _loadable(directory, loading) as loadable:
        if isinstance(model, StoredModel):
            metrics = compare_by_layer(
                loadable,
                edit,
                model,
                base.tokenizer,
                projections=projections,
                export_in_memory=export_in_memory,
                exact=tensors.exact,
                loading=loading,
                process=process,
                base_moved=moved,
            )
        else:
            metrics = compare(
                loadable,
                edit,
                model,
                base.tokenizer,
                dtype,
                projections=projections,
                export_in_memory=export_in_memory,
                exact=tensors.exact,
                loading=loading,
                process=process,
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


@contextmanager
def _loadable(directory: Path, loading: Loading | None) -> Iterator[Path]:
    """The directory from which plain transformers loads an export: another one, if it is a GGUF model in parts."""
    file = None if loading is None else loading.arguments.get("gguf_file")
    if file is None:
        yield directory
        return
    from sea_export.model.gguf_parts import join_parts, read_parts

    parts = read_parts(directory / str(file))
    if len(parts) == 1:
        yield directory
        return
    with scratch_directory("sea-export-joined-", Path(tempfile.gettempdir())) as joined:
        join_parts(parts, joined / parts[0].path.name)
        yield joined


@contextmanager
def base_to_verify(base: Base, format: ExportFormat[Any, Any]) -> Iterator[Base]:
    """The base with the very numbers from which an export is made.

    A GGUF file is rounded when it is converted, and an export of it that is a GGUF file too is made without that.

    Args:
        base: the base.
        format: the format of the export.

    Yields:
        the base itself, or the same one converted to float32.

    Raises:
        InputError: it can no longer be opened.
    """
    if not format.changes_source or base.gguf is None or base.dtype == torch.float32:
        yield base
        return
    with open_base(str(base.gguf), dtype=torch.float32) as exact:
        yield exact


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
