"""Is an export the edit that it claims to be? Two sources of error, kept apart, and a statement about every tensor.

- Fold error: the run-time edit against what the export computes in memory (folded weights, or the adapter on the
  base), both in float32 on the base's own weights.
- Rounding error: the export as another process loads it, which knows nothing of sea-export, against the run-time edit.
  A merged checkpoint adds the rounding of the edited weights to the stored dtype. Beside it stands what computing in
  that dtype does to the unedited base.
- Tensors: exactly the intended tensors differ from the base, each by the fold and one rounding, and no other byte; or
  the adapter makes the edited weights of the base's, and nothing else; or the edit's stand beside the base's.

An adapter of capped rank is an approximation. How far it is from the edit is reported, and what is tested is that it is
the approximation that it claims to be. A quantized base is computed with as it is, in its own dtype.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from sea_export.capture.offloaded import StoredModel, can_load_layers
from sea_export.edit.spectral_edit import SpectralEdit
from sea_export.errors import InputError
from sea_export.export.fetch import fetch_output
from sea_export.export.formats import EditNeeds, ExportFormat, export_format
from sea_export.export.manifest import read_manifest
from sea_export.model.base import Base, is_hub_id, open_base
from sea_export.model.checkpoint import Checkpoint
from sea_export.options import ExportOptions
from sea_export.text import dtype_name
from sea_export.verification.compare import Agreement, compare, comparison_problems, is_quantized
from sea_export.verification.compare_by_layer import compare_by_layer, verified_by_layer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["Verification", "model_to_verify", "verify", "verify_export"]

# The names that version 1 of the manifest has for fields of a verification and of an agreement.
_RECORD_NAMES = {"fold_error": "mathematics", "rounding_error": "storage", "top1_agreement": "equal_greedy"}


@dataclass(frozen=True)
class Verification:
    """What was measured, and what is wrong with it."""

    dtype: str
    """The dtype in which the base stores the edited tensors."""
    fold_error: Agreement
    """Run-time edit against the export in memory, both in float32."""
    rounding_error: Agreement
    """Run-time edit (for an adapter of capped rank: the adapter in memory) against the export as stored, loaded by
    another process and computed in float32."""
    base_rounding: Agreement
    """The unedited base computed in float32 against itself computed in the stored dtype: the noise that users of
    the base accept already. With quantized weights: against itself, the edited outputs rounded otherwise."""
    effect: Agreement
    """The base against the run-time edit: what the edit does."""
    changed_tensors: int
    """Tensors that differ from the base's."""
    identical_tensors: int
    """Tensors that are the base's, byte for byte."""
    identical_files: int
    """Other files that are the base's, byte for byte."""
    problems: tuple[str, ...]
    """What is outside the tolerance or not as claimed, in sentences."""
    weight_error: float | None
    """For an adapter: the largest ‖adapted W - W'‖ / ‖W' - W‖ of any weight that it changes."""
    exact: bool
    """False for an adapter of capped rank, which claims to be no more than an approximation."""
    statement: str
    """What the tensors of the export are, in a sentence."""

    @property
    def passed(self) -> bool:
        """Whether the checkpoint is the edit that it claims to be."""
        return not self.problems

    def record(self) -> dict[str, Any]:
        """All of it as plain JSON data, under the names that the manifest has for it."""
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
    """Verifies an export.

    Args:
        directory: where it was written.
        base: the base.
        edit: the edit that it claims to hold.
        format: its format.
        plan: what it consists of: see `ExportFormat.plan`.
        model: the base in memory, which is left in another dtype than it came in, or a layer at a time in memory.

    Raises:
        InputError: the export is damaged.
        SeaExportError: plain transformers cannot load the export.
    """
    by_layer = isinstance(model, StoredModel)
    quantized = isinstance(model, nn.Module) and is_quantized(model)
    dtype = format.stored_dtype(base, plan) or model.dtype
    tensors = format.check(directory, base, edit, plan)  # first: it finds what no library is to be given
    projections = base.output_projections(edit.targets)
    export_in_memory = format.edit_in_memory(directory, quantized=quantized, by_layer=by_layer)
    if isinstance(model, StoredModel):
        metrics = compare_by_layer(
            directory,
            edit,
            model,
            base.tokenizer,
            projections=projections,
            export_in_memory=export_in_memory,
            exact=tensors.exact,
            own_code=format.runs_code,
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
            own_code=format.runs_code,
        )
    coarsest = dtype if format.rounds_weights else torch.float32
    problems = comparison_problems(metrics, coarsest, exact=tensors.exact, quantized=quantized)
    return Verification(
        dtype=dtype_name(dtype),
        **metrics,
        changed_tensors=tensors.changed_tensors,
        identical_tensors=tensors.identical_tensors,
        identical_files=tensors.identical_files,
        problems=(*problems, *tensors.problems),
        weight_error=tensors.weight_error,
        exact=tensors.exact,
        statement=tensors.statement,
    )


def verify(
    output: str | Path,
    base: str | Path | None = None,
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
    layerwise: bool | None = None,
) -> Verification:
    """Verifies a checkpoint that sea-export wrote.

    Args:
        output: the checkpoint: a directory, or `REPO_ID` or `REPO_ID@REVISION` on the Hub.
        base: the base model; by default what the checkpoint's manifest names, if that is a Hub id.
        revision: the base's revision; by default what the manifest names.
        trust_remote_code: whether code that comes with the base, or code in the output that this version of sea-export
            does not write, may run.
        layerwise: whether one layer of the base at a time is in memory; None chooses by how much memory there is.

    Raises:
        InputError: the output is no checkpoint of sea-export's, the base is not at hand, or code is not trusted.
        SeaExportError: plain transformers cannot load the checkpoint.
    """
    directory = fetch_output(output)
    manifest = read_manifest(directory)
    format = export_format(manifest["format"])
    options = ExportOptions(format=format.name, adapter_rank=manifest.get("adapter", {}).get("rank_cap"))
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
        located = format.locate(opened, edit.targets, EditNeeds.of_edit(edit), options)
        model: PreTrainedModel | None = None

        def load() -> PreTrainedModel:
            nonlocal model
            model = model or opened.load_model()
            return model

        plan = format.plan(edit, opened, located, options, load)
        format.check_before_loading(directory, plan, trust_remote_code=trust_remote_code)
        verified = model_to_verify(opened, layerwise, model, directory.resolve().parent)
        return verify_export(directory, opened, edit, format, plan, verified)


def model_to_verify(
    base: Base, layerwise: bool | None, model: PreTrainedModel | StoredModel | None, scratch: Path
) -> PreTrainedModel | StoredModel:
    """The base as it is to be verified with: in memory if it fits there twice in float32, else a layer at a time.

    Args:
        base: the base.
        layerwise: which of the two; None lets that be chosen.
        model: the base as it was fitted, if it was. In a dtype that rounds its weights it is not the one exported.
        scratch: where hidden states are put that do not fit into memory.
    """
    if layerwise is None:
        device = torch.device("cpu") if not isinstance(model, nn.Module) else next(model.parameters()).device
        held = sum(parameter.nbytes for parameter in model.parameters()) if isinstance(model, nn.Module) else 0
        spread = len(set(getattr(model, "hf_device_map", {}).values())) > 1  # and cannot change its dtype as a whole
        layerwise = (spread and can_load_layers(base.config)) or verified_by_layer(base, device, held)
    if layerwise:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return StoredModel(base, dtype=None, device=device, scratch=scratch)
    if isinstance(model, nn.Module) and not _is_rounded(model, base.checkpoint):
        return model
    return base.load_model()


def _is_rounded(model: PreTrainedModel, checkpoint: Checkpoint) -> bool:
    """Whether the model was loaded in a dtype that does not hold what most of its checkpoint is stored in."""
    sizes: Counter[torch.dtype] = Counter()
    for tensor in checkpoint.tensors.values():
        if tensor.dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
            sizes[tensor.dtype] += tensor.end - tensor.start
    computed = model.dtype
    return any(torch.promote_types(stored, computed) != computed for stored, _ in sizes.most_common(1))
