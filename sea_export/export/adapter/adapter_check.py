"""Checks whether an adapter is the edit: weight by weight, and with PEFT on the base in memory."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sea_export.edit.spectral_edit import SpectralEdit
from sea_export.errors import InputError
from sea_export.export.adapter.adapter_plan import AdapterPlan
from sea_export.export.adapter.build import PREFIX, edited_weights, read_weight
from sea_export.export.adapter.edited_weight import ChangedWeight, EditedWeight
from sea_export.export.adapter.parameter_lora import parameter_change
from sea_export.export.formats import TensorCheck
from sea_export.files.reading import check_contained
from sea_export.model.adapter_files import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    read_adapter_config,
    read_adapter_weights,
)
from sea_export.model.pretrained import put_adapter_on
from sea_export.model.safetensors_header import read_header

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["check_adapter_weights", "read_adapter", "with_adapter"]

# The largest ‖adapted W - W'‖ / ‖W'‖ that rounding may cause: in float32, and in the kernels of a quantized base.
_TOLERANCE = 1e-5
_QUANTIZED_TOLERANCE = 1e-2


@contextmanager
def with_adapter(model: PreTrainedModel, directory: Path) -> Iterator[None]:
    """A context in which a model in memory has the adapter.

    Args:
        model: the base.
        directory: the adapter.

    Raises:
        InputError: PEFT cannot load it.
    """
    modules = read_adapter_config(directory)["target_modules"]
    # An adapter may replace biases of the base, and PEFT does not put them back.
    biases = {name: getattr(model.get_submodule(name), "bias", None) for name in modules}
    kept = {name: bias.clone() for name, bias in biases.items() if isinstance(bias, Tensor)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about biases that cannot be merged, which the rank report has said
        adapted: Any = put_adapter_on(model, directory)
        try:
            yield
        finally:
            adapted.unload()
            for name, bias in kept.items():
                model.get_parameter(f"{name}.bias").copy_(bias)


def check_adapter_weights(directory: Path, edit: SpectralEdit, plan: AdapterPlan) -> TensorCheck:
    """Compares the adapted weights of a written adapter with the edited weights.

    Args:
        directory: the adapter.
        edit: the edit that it should hold.
        plan: the adapter as it should be.

    Raises:
        InputError: it has another config or other tensors than the edit's adapter.
    """
    adapter = plan.adapter
    config, tensors = read_adapter(directory, plan)
    tolerance = _TOLERANCE if plan.stored_weights else _QUANTIZED_TOLERANCE
    allowed = {module.module: module.relative_error for module in adapter.modules}
    largest, wrong = 0.0, []
    for part in edited_weights(edit, plan.projections, plan.read, plan.weights):
        if part.module not in allowed:
            continue
        weight = read_weight(part.weight, plan.read)
        edited = part.fold(weight)
        distance = (_adapted_weight(weight, part, tensors, config) - edited).norm()
        change = (edited - weight).norm()
        largest = max(largest, float(distance / change))
        limit = allowed[part.module] * change + tolerance * edited.norm()
        if not distance <= limit or not _same_bias(part, tensors):
            wrong.append(part.module)
    return TensorCheck(
        problems=(f"the adapter does not make the edited weights of {', '.join(wrong)}",) if wrong else (),
        statement=f"The adapter changes {len(adapter.modules)} weights of the base, each as the edit does but for "
        f"{largest:.1e} of the change at most.",
        changed_tensors=0,
        identical_tensors=0,
        identical_files=0,
        exact=adapter.exact,
        weight_error=largest,
    )


def read_adapter(directory: Path, plan: AdapterPlan) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The config and the tensors of a written adapter.

    Args:
        directory: the adapter.
        plan: the adapter as it should be.

    Raises:
        InputError: it has another config, or tensors of other names or shapes. PEFT must not load such an adapter,
            because it does all that the config says.
    """
    adapter = plan.adapter
    config = read_adapter_config(directory)
    free = {"base_model_name_or_path", "revision"}  # these may name another copy of the same base
    if {key: value for key, value in config.items() if key not in free} != {
        key: value for key, value in adapter.config.items() if key not in free
    }:
        raise InputError(
            f"{directory.name}: its {ADAPTER_CONFIG} is not that of the edit's adapter. Export the edit again."
        )
    check_contained(directory / ADAPTER_WEIGHTS, directory)
    stored = {tensor.name: (tensor.shape, tensor.dtype) for tensor in read_header(directory / ADAPTER_WEIGHTS).tensors}
    if stored != {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in adapter.tensors.items()}:
        raise InputError(
            f"{directory.name}: its {ADAPTER_WEIGHTS} does not hold the tensors of the edit's adapter. Export the edit "
            "again."
        )
    return config, read_adapter_weights(directory)


def _adapted_weight(
    weight: Tensor, part: EditedWeight | ChangedWeight, tensors: Mapping[str, Tensor], config: Mapping[str, Any]
) -> Tensor:
    own = {name: tensors.get(f"{PREFIX}{part.module}.{name}") for name in _NAMES}
    b, a, magnitude = own["lora_B.weight"], own["lora_A.weight"], own["lora_magnitude_vector.weight"]
    assert b is not None
    assert a is not None
    rank = config["rank_pattern"].get(part.module, config["r"])
    scaling = config["alpha_pattern"].get(part.module, config["lora_alpha"]) / rank
    if part.weight.experts:
        return weight + scaling * parameter_change(part.weight, len(weight), a.double(), b.double())
    adapted = weight + scaling * b.double() @ a.double()
    if magnitude is None:
        return adapted
    return (magnitude.double() / adapted.norm(dim=1))[:, None] * adapted


_NAMES = ("lora_A.weight", "lora_B.weight", "lora_magnitude_vector.weight")


def _same_bias(part: EditedWeight | ChangedWeight, tensors: Mapping[str, Tensor]) -> bool:
    stored = tensors.get(f"{PREFIX}{part.module}.lora_B.bias")
    expected = part.constant
    if stored is None:
        stored = tensors.get(f"{PREFIX}{part.module}.base_layer.bias")
        expected = part.bias if stored is not None else part.constant
    if stored is None or expected is None:
        return expected is None and (stored is None or not stored.any())
    return torch.allclose(stored.double(), expected, rtol=0, atol=_TOLERANCE * float(expected.abs().max()))
