"""Is an export the edit it claims to be? Two sources of error, kept apart, and a statement about every tensor.

- Mathematics: the run-time edit against what the export computes in memory (folded weights, or the adapter on the
  base), both in float32 on the base's own weights.
- Storage: the export as a stranger's process loads it, against the run-time edit. A merged checkpoint adds the rounding
  of the edited weights to the stored dtype. Beside it stands what computing in that dtype does to the unedited base.
- Tensors: exactly the intended tensors differ from the base, each by the fold and one rounding, and no other byte; or
  the adapter makes the edited weights of the base's, and nothing else; or the edit's stand beside the base's.

An adapter of capped rank is an approximation: how far it is from the edit is reported, and what is tested is that it is
the approximation it claims to be. A quantized base is computed with as it is, in its own dtype.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from sea_export.capture.offloaded import StoredModel, can_load_layers
from sea_export.edit.spectral_edit import SpectralEdit
from sea_export.errors import InputError
from sea_export.export.adapter.adapter_check import adapter_problems, base_of_adapter, with_adapter
from sea_export.export.adapter.adapter_plan import AdapterPlan
from sea_export.export.custom_code.code_check import code_problems, has_own_code
from sea_export.export.custom_code.code_plan import CODE_FILE, CodePlan
from sea_export.export.fetch import fetch_output
from sea_export.export.manifest import read_manifest
from sea_export.export.merged.merge_check import merge_problems, with_folded_weights
from sea_export.export.merged.merge_plan import MergePlan
from sea_export.model.base import BaseModel, is_hub_id, resolve_base
from sea_export.model.checkpoint import Checkpoint
from sea_export.model.diff import compare_checkpoints
from sea_export.model.load_model import load_config, load_model, load_tokenizer
from sea_export.options import SaveOptions
from sea_export.saving import find_targets, plan_export
from sea_export.text import dtype_name
from sea_export.verification.compare import Agreement, comparison_problems, is_quantized, measure
from sea_export.verification.compare_by_layer import compare_by_layer, verified_by_layer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["Verification", "model_to_verify", "verify", "verify_export"]


@dataclass(frozen=True)
class Verification:
    """What was measured, and what is wrong with it."""

    dtype: str
    """The dtype in which the base stores the edited tensors."""
    mathematics: Agreement
    """Run-time edit against the export in memory, both in float32."""
    storage: Agreement
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
        """Whether the checkpoint is the edit it claims to be."""
        return not self.problems


@torch.inference_mode()
def verify_export(
    directory: Path,
    base: Checkpoint,
    edit: SpectralEdit,
    plan: MergePlan | AdapterPlan | CodePlan,
    model: PreTrainedModel | StoredModel,
    tokenizer: PreTrainedTokenizerBase,
) -> Verification:
    """Verifies an export.

    Args:
        directory: where it was written.
        base: the base's checkpoint.
        edit: the edit that it claims to hold.
        plan: what it consists of.
        model: the base in memory, which is left in another dtype than it came in, or a layer at a time in memory.
        tokenizer: its tokenizer.

    Raises:
        SeaExportError: plain transformers cannot load the export.
    """
    if isinstance(plan, CodePlan):
        return _verify_custom_code(directory, base, edit, plan, model, tokenizer)
    if isinstance(plan, AdapterPlan):
        return _verify_adapter(directory, base, edit, plan, model, tokenizer)
    return _verify_merged(directory, base, edit, plan, model, tokenizer)


def _verify_merged(
    directory: Path,
    base: Checkpoint,
    edit: SpectralEdit,
    plan: MergePlan,
    model: PreTrainedModel | StoredModel,
    tokenizer: PreTrainedTokenizerBase,
) -> Verification:
    dtype = next(base.tensors[name].dtype for name in plan.edits)
    figures = _figures(directory, edit, model, tokenizer, dtype, export_in_memory=with_folded_weights)
    difference = compare_checkpoints(base.directory, directory)
    changed = len(difference.tensors_changed) + len(difference.tensors_only_in_b)
    return Verification(
        dtype=dtype_name(dtype),
        **figures,
        changed_tensors=changed,
        identical_tensors=difference.tensors_identical,
        identical_files=difference.files_identical,
        problems=(*comparison_problems(figures, dtype), *merge_problems(directory, base, plan, difference)),
        weight_error=None,
        exact=True,
        statement=f"{changed} tensors differ from the base's; {difference.tensors_identical} tensors and "
        f"{difference.files_identical} other files are byte-identical.",
    )


def _verify_adapter(
    directory: Path,
    base: Checkpoint,
    edit: SpectralEdit,
    plan: AdapterPlan,
    model: PreTrainedModel | StoredModel,
    tokenizer: PreTrainedTokenizerBase,
) -> Verification:
    exact = plan.adapter.exact
    stored = base.tensors[plan.stored_weights[0]].dtype if plan.stored_weights else model.dtype
    quantized = isinstance(model, nn.Module) and is_quantized(model)
    # PEFT can neither take an adapter off quantized weights without harm nor put it on one layer at a time: there the
    # stranger's figures stand for both.
    in_memory = None if quantized or isinstance(model, StoredModel) else lambda model, _: with_adapter(model, directory)
    weight_error, problems = adapter_problems(directory, edit, plan)  # first: it finds what PEFT is not to be given
    figures = _figures(directory, edit, model, tokenizer, stored, export_in_memory=in_memory, exact=exact)
    return Verification(
        dtype=dtype_name(stored),
        **figures,
        changed_tensors=0,
        identical_tensors=0,
        identical_files=0,
        # An adapter is stored in float32, whatever the dtype of its base, so that nothing but the computation rounds.
        problems=(*comparison_problems(figures, torch.float32, exact=exact, quantized=quantized), *problems),
        weight_error=weight_error,
        exact=exact,
        statement=f"The adapter changes {len(plan.adapter.modules)} weights of the base, each as the edit does but for "
        f"{weight_error:.1e} of the change at most.",
    )


def _verify_custom_code(
    directory: Path,
    base: Checkpoint,
    edit: SpectralEdit,
    plan: CodePlan,
    model: PreTrainedModel | StoredModel,
    tokenizer: PreTrainedTokenizerBase,
) -> Verification:
    quantized = isinstance(model, nn.Module) and is_quantized(model)
    dtype = model.dtype if isinstance(model, nn.Module) and quantized else next(iter(base.tensors.values())).dtype
    # The base's weights and the edit's, in float32, are stored as they are: nothing but the computation rounds.
    figures = _figures(directory, edit, model, tokenizer, dtype, export_in_memory=None, own_code=True)
    difference = compare_checkpoints(base.directory, directory)
    return Verification(
        dtype=dtype_name(dtype),
        **figures,
        changed_tensors=len(difference.tensors_changed),
        identical_tensors=difference.tensors_identical,
        identical_files=difference.files_identical,
        problems=(
            *comparison_problems(figures, torch.float32, quantized=quantized),
            *code_problems(directory, plan, difference),
        ),
        weight_error=None,
        exact=True,
        statement=f"{difference.tensors_identical} tensors and {difference.files_identical} other files are the "
        f"base's, byte for byte; {len(difference.tensors_only_in_b)} tensors of the edit stand beside them.",
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
    options = SaveOptions(
        format=manifest["format"],
        adapter_rank=manifest.get("adapter", {}).get("rank_cap"),
        trust_remote_code=trust_remote_code,
        layerwise=layerwise,
    )
    named = manifest["base"]
    if base is None and options.format == "adapter":
        base = base_of_adapter(directory)
    if base is None and not is_hub_id(named["name"]):
        raise InputError(f"{output} was made from the local model {named['name']}: say where it is with --base")
    edit = SpectralEdit.load(directory)
    if options.format != "adapter":
        Checkpoint.open(directory)  # finds what a stranger's process is not to be given
    with resolve_base(
        str(base or named["name"]),
        revision=revision or named["revision"],
        dtype=getattr(torch, named["dtype"]),
        dequantized=named["dequantized"],
    ) as resolved:
        stored = find_targets(edit.targets, resolved, options, needs_bias=edit.needs_bias)
        model: PreTrainedModel | None = None

        def load() -> PreTrainedModel:
            nonlocal model
            model = model or load_model(resolved, trust_remote_code=trust_remote_code)
            return model

        plan = plan_export(edit, resolved, stored, options, load)
        if isinstance(plan, CodePlan) and not trust_remote_code and not has_own_code(directory, plan):
            raise InputError(
                f"{CODE_FILE} or config.json of {output} is not what this version of sea-export writes for the "
                "edit: read the code, and run it with --trust-remote-code"
            )
        tokenizer = load_tokenizer(resolved, trust_remote_code=trust_remote_code)
        verified = model_to_verify(resolved, options, model, directory.resolve().parent)
        return verify_export(directory, resolved.checkpoint, edit, plan, verified, tokenizer)


def _figures(
    directory: Path,
    edit: SpectralEdit,
    model: PreTrainedModel | StoredModel,
    tokenizer: PreTrainedTokenizerBase,
    dtype: torch.dtype,
    *,
    export_in_memory: Callable[[PreTrainedModel, SpectralEdit], AbstractContextManager[None]] | None,
    exact: bool = True,
    own_code: bool = False,
) -> dict[str, Agreement]:
    """`measure`, or `compare_by_layer` for a model that is not in memory as a whole."""
    if isinstance(model, StoredModel):
        in_memory = None if export_in_memory is None else partial(export_in_memory, model.model)
        return compare_by_layer(
            directory, edit, model, tokenizer, export_in_memory=in_memory, exact=exact, own_code=own_code
        )
    in_memory = None if export_in_memory is None else partial(export_in_memory, model)
    return measure(directory, edit, model, tokenizer, dtype, export_in_memory=in_memory, exact=exact, own_code=own_code)


def model_to_verify(
    base: BaseModel, options: SaveOptions, model: PreTrainedModel | StoredModel | None, scratch: Path
) -> PreTrainedModel | StoredModel:
    """The base as it is to be verified with: in memory if it fits there twice in float32, else a layer at a time.

    Args:
        base: the resolved base.
        options: `layerwise` says which, if it is not to be chosen.
        model: the base as it was fitted, if it was. In a dtype that rounds its weights it is not the one exported.
        scratch: where hidden states are put that do not fit into memory.
    """
    config = load_config(base, trust_remote_code=options.trust_remote_code)
    layerwise = options.layerwise
    if layerwise is None:
        device = torch.device("cpu") if not isinstance(model, nn.Module) else next(model.parameters()).device
        held = sum(parameter.nbytes for parameter in model.parameters()) if isinstance(model, nn.Module) else 0
        spread = len(set(getattr(model, "hf_device_map", {}).values())) > 1  # and cannot change its dtype as a whole
        layerwise = (spread and can_load_layers(config)) or verified_by_layer(base, config, device, held)
    if not layerwise:
        if isinstance(model, nn.Module) and not _is_rounded(model, base.checkpoint):
            return model
        return load_model(base, trust_remote_code=options.trust_remote_code)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return StoredModel(
        base, config, dtype=None, device=device, scratch=scratch, trust_remote_code=options.trust_remote_code
    )


def _is_rounded(model: PreTrainedModel, checkpoint: Checkpoint) -> bool:
    """Whether the model was loaded in a dtype that does not hold what most of its checkpoint is stored in."""
    sizes: Counter[torch.dtype] = Counter()
    for tensor in checkpoint.tensors.values():
        if tensor.dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
            sizes[tensor.dtype] += tensor.end - tensor.start
    computed = model.dtype
    return any(torch.promote_types(stored, computed) != computed for stored, _ in sizes.most_common(1))
