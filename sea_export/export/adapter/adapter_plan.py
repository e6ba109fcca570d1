"""The plan of an adapter export: the adapter of an edit on a base, and the report about it before it is written."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from sea_export.edit.spectral_edit import SpectralEdit
from sea_export.errors import InputError
from sea_export.export.adapter.build import Adapter, build_adapter, check_parameters, no_place_for_constant
from sea_export.export.stored_layout import StoredParameter
from sea_export.export.stored_projections import StoredProjections
from sea_export.model.adapter_files import ADAPTER_CONFIG
from sea_export.model.architecture import OutputProjection, hidden_size
from sea_export.model.base import Base

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["AdapterPlan", "check_adapter", "plan_adapter"]

_BASIS_ROWS = 1024
_FLOAT32_BYTES = 4
_VLLM_DEFAULT_RANK = 16
_VLLM_RANKS = (16, 32, 64, 128, 256, 320, 512)


@dataclass(frozen=True)
class AdapterPlan:
    """An adapter, with the weights of the base from which it was made."""

    adapter: Adapter
    projections: tuple[OutputProjection, ...]
    read: Callable[[str], Tensor]
    """Reads a parameter of the base by its name in the model."""
    rank_cap: int | None
    stored_weights: tuple[str, ...]
    """Stored names of the weights that a merge would change; empty for a quantized base."""
    merged_bytes: int | None
    """The size of those weights in bytes; None for a quantized base."""
    lora_scale_strength: float | None
    """The strength v of the edit, if the adapter at LoRA scale s is the edit of strength v s; None if it is not."""
    local_base: bool
    """Whether the adapter names its base by a path on this machine."""

    def details(self) -> dict[str, Any]:
        """The entry of the manifest about the adapter, as plain JSON data."""
        adapter = self.adapter
        return {
            "kind": self.kind,
            "exact": adapter.exact,
            "dial": self.lora_scale_strength,  # its name in version 1 of the manifest
            "replaces_biases": adapter.config["bias"] != "none",
            "rank_cap": self.rank_cap,
            "bytes": adapter.size,
            "merged_bytes": self.merged_bytes,
            "modules": [asdict(module) for module in adapter.modules],
        }

    @property
    def kind(self) -> str:
        """`LoRA` or `DoRA`, and whether it has biases."""
        config = self.adapter.config
        if config["lora_bias"]:
            return "LoRA with biases"
        if config["bias"] == "lora_only":
            return "DoRA with the base's biases edited"
        return "DoRA" if config["use_dora"] else "LoRA"

    def remarks(self) -> list[str]:
        """The rank report, one line each: ranks, size, which programs load it, and whether merging is better."""
        adapter, modules = self.adapter, self.adapter.modules
        exact = [module.exact_rank for module in modules]
        lines = [
            f"Adapter: {self.kind}, {_megabytes(adapter.size)}, {len(modules)} modules; exact ranks "
            f"{', '.join(map(str, exact))}."
        ]
        if not adapter.exact:
            errors = [module.relative_error for module in modules]
            lines.append(
                f"It is cut to rank {self.rank_cap}, so it is not the edit but its best approximation of that rank: "
                f"the change of a weight is off by {min(errors):.1%} to {max(errors):.1%} of its norm."
            )
        if self.merged_bytes is not None and adapter.size >= self.merged_bytes:
            lines.append(
                f"It is larger than the weights that it edits ({_megabytes(self.merged_bytes)}): --format merged is "
                "the better choice, unless the base has to be shared."
            )
        lines.append(_who_loads(adapter.config))
        weights = [weight for projection in self.projections for weight in projection.weights]
        if adapter.config["lora_bias"] and any(weight.bias is None for weight in weights):
            lines.append("PEFT cannot merge it into the base, because the edited modules of the base have no biases.")
        if self.local_base:
            lines.append(
                f"{ADAPTER_CONFIG} names the base by its path on this machine, so the adapter loads only here: give "
                "the base as a Hub id to publish the adapter."
            )
        return lines


def check_adapter(base: Base, stored: StoredProjections, *, needs_bias: bool, scaled: bool) -> None:
    """Raises InputError, before a fit, if no adapter can hold the edit on this base.

    Args:
        base: the base.
        stored: what `find_stored_projections` found.
        needs_bias: whether the edit adds a constant.
        scaled: whether the edit scales rows, and the adapter must be exact.
    """
    _location(base)
    weights = [weight for projection in stored.projections for weight in projection.weights]
    biases = any(weight.bias is not None for weight in weights)
    check_parameters(stored.projections, scaled=scaled, constant=needs_bias or biases)
    for weight in weights:
        if needs_bias and scaled and weight.bias is None:
            raise no_place_for_constant(weight)


def estimated_bytes(base: Base, targets: int, rank: int) -> int:
    """About how many bytes an adapter will have.

    Args:
        base: the base.
        targets: the number of edited targets.
        rank: the rank of the edit of each target.
    """
    size = hidden_size(base.config)
    shapes = [parameter.shape for parameter in base.skeleton.parameters() if parameter.ndim == 2]
    widest = max(max(shape) for shape in shapes if shape[0] == size)
    return targets * rank * (size + widest) * _FLOAT32_BYTES


def plan_adapter(
    edit: SpectralEdit,
    base: Base,
    stored: StoredProjections,
    *,
    rank: int | None,
    pad: bool = True,
    load: Callable[[], PreTrainedModel],
) -> AdapterPlan:
    """Makes the adapter of an edit.

    Args:
        edit: the edit.
        base: the base, from which one weight is read at a time.
        stored: what `find_stored_projections` found for the edit's targets.
        rank: see `build_adapter`.
        pad: see `build_adapter`.
        load: loads the base into memory. It is called for quantized bases only, whose stored tensors are not weights.

    Raises:
        InputError: see `build_adapter`; or transformers could not load the base together with the adapter.
        SeaExportError: see `build_adapter`.
    """
    parameters = stored.parameters
    read: Callable[[str], Tensor] = _CheckpointReader(base, parameters) if parameters else _ModelReader(load())
    weights = tuple(
        part
        for projection in stored.projections
        for weight in projection.weights
        if weight.name in parameters
        for part in parameters[weight.name].parts
    )
    spans = [base.checkpoint.tensors[name] for name in weights]
    adapter = build_adapter(
        edit, stored.projections, read, base=_location(base), revision=base.revision, rank=rank, pad=pad
    )
    _check_names(adapter, stored.model)
    return AdapterPlan(
        adapter=adapter,
        projections=stored.projections,
        read=read,
        rank_cap=rank,
        stored_weights=weights,
        merged_bytes=sum(span.end - span.start for span in spans) if parameters else None,
        lora_scale_strength=_lora_scale_strength(edit, adapter),
        local_base=base.revision is None,
    )


def _check_names(adapter: Adapter, model: PreTrainedModel) -> None:
    """Raises InputError unless PEFT loads every tensor of an adapter into the right parameter of the model.

    Like transformers, PEFT renames tensors while it loads them, for some architectures, and not always correctly.
    """
    from peft import LoraConfig, get_peft_model, set_peft_model_state_dict

    config = {key: value for key, value in adapter.config.items() if key not in ("peft_type", "revision")}
    tensors = {name: torch.empty_like(tensor, device="meta") for name, tensor in adapter.tensors.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about a model without weights
        adapted = get_peft_model(copy.deepcopy(model), LoraConfig(**config), low_cpu_mem_usage=True)
        try:
            report: Any = set_peft_model_state_dict(adapted, tensors, low_cpu_mem_usage=True)
        except RuntimeError as error:  # tensors of other shapes than it expects
            raise InputError(
                f"{type(model).__name__}: the installed PEFT has another layout for experts such as its own. Upgrade "
                "PEFT, or choose --format merged or custom-code."
            ) from error
    if lost := report.unexpected_keys:
        raise InputError(
            f"{lost[0]}: PEFT does not find the parameter of {type(model).__name__} that this tensor adapts, because "
            "it renames tensors. Choose --format merged or custom-code."
        )


def _lora_scale_strength(edit: SpectralEdit, adapter: Adapter) -> float | None:
    layers = [layer for product in edit.layers.values() for layer in product]
    strengths = {layer.strength for layer in layers}
    scaled = any(layer.scale is not None or layer.identity != 1 for layer in layers)
    if scaled or not adapter.exact or len(layers) != len(edit.layers) or len(strengths) != 1:
        return None
    return strengths.pop()


def _location(base: Base) -> str:
    if base.location is None:
        raise InputError(
            f"{base.name}: it had to be {'dequantized' if base.dequantized else 'converted from a .gguf file'} first, "
            "and an adapter is loaded together with its base. Choose --format merged, or give a base that transformers "
            "loads by itself."
        )
    return base.location


@dataclass(frozen=True)
class _CheckpointReader:
    base: Base
    parameters: Mapping[str, StoredParameter]

    def __call__(self, name: str) -> Tensor:
        return self.parameters[name].read(self.base.checkpoint)


@dataclass(frozen=True)
class _ModelReader:
    """Reads the weights that linear maps compute with. A quantized map is applied to the vectors of a basis."""

    model: PreTrainedModel

    @torch.inference_mode()
    def __call__(self, name: str) -> Tensor:
        module_name, _, leaf = name.rpartition(".")
        module: Any = self.model.get_submodule(module_name)
        if leaf == "bias" or type(module) in (nn.Linear, Conv1D):
            parameter: Tensor = getattr(module, leaf)
            return parameter.detach()
        bias, module.bias = module.bias, None
        try:
            basis = torch.eye(module.in_features, device=self.model.device, dtype=self.model.dtype)
            return torch.cat([module(rows) for rows in basis.split(_BASIS_ROWS)]).T
        finally:
            module.bias = bias


def _who_loads(config: Mapping[str, Any]) -> str:
    rank = config["r"]
    if config["use_dora"]:
        return (
            "It loads in transformers and PEFT. Its row scales need DoRA, which vLLM and llama.cpp do not have: merge "
            "for them, or take the approximation of --adapter-rank."
        )
    if config["lora_bias"]:
        return "It loads in transformers and PEFT. It has biases, which vLLM and llama.cpp do not read: merge for them."
    if rank <= _VLLM_DEFAULT_RANK:
        return f"Rank {rank}: programs that cap the rank (vLLM at {_VLLM_DEFAULT_RANK} unless told otherwise) take it."
    fitting = next((cap for cap in _VLLM_RANKS if cap >= rank), None)
    if fitting is None:
        return f"Rank {rank} is more than vLLM takes ({_VLLM_RANKS[-1]}): merge for it, or cut it with --adapter-rank."
    return (
        f"Rank {rank}: vLLM takes up to {_VLLM_DEFAULT_RANK} unless told otherwise, and this one with "
        f"--max-lora-rank {fitting}."
    )


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.3g} MB"
