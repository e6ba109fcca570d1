"""The import of an adapter: what PEFT makes of it on the model becomes changes of the weights of linear maps.

PEFT itself says which modules an adapter changes, with which tensors, ranks and scalings: the adapter is put on a copy
of the model without its weights, and PEFT's layers are read. So no rule of PEFT, such as patterns of ranks or names
that it converts, is written down again.
"""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from peft import get_peft_model, set_peft_model_state_dict
from peft.tuners.lora.layer import Linear, LoraLayer
from torch import Tensor

from sea_export.edit.changed_weights import ChangedWeights
from sea_export.edit.edited_layers import EditedLayers
from sea_export.edit.spectral_edit import SpectralEdit
from sea_export.edit.weight_change import WeightChange
from sea_export.errors import InputError, refused_by_library
from sea_export.export.stored_layout import StoredLayout, stored_layout
from sea_export.fitting.fit_base import with_weight_digests
from sea_export.importing.adapter_source import AdapterSource
from sea_export.model.architecture import ProjectionWeight, decoder_layers
from sea_export.model.base import Base
from sea_export.model.linear_modules import find_linear_weights
from sea_export.model.location import is_hub_id
from sea_export.model.random_weights import with_random_weights
from sea_export.versions import library_versions

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["adapter_edit"]

logger = logging.getLogger(__name__)

_ADAPTER = "default"
_ROWS = 1024
"""Rows of a weight that are widened at a time."""


def adapter_edit(source: AdapterSource, base: Base, strength: float) -> SpectralEdit:
    """The edit that an adapter makes of a model.

    Args:
        source: the adapter.
        base: the model that it is for.
        strength: what the change of each weight is multiplied by.

    Returns:
        An edit of weights alone, which names the model and the adapter.

    Raises:
        InputError: PEFT cannot put the adapter on the model, a tensor of it is missing, not used or not finite, it
            changes something other than weights of linear maps, or nothing.
    """
    _warn_of_other_base(source, base)
    model = base.skeleton
    layout = stored_layout(model, base.checkpoint)
    layers, copies = _peft_layers(source, model)
    weights = find_linear_weights(model, layers)
    _check_copies(source, base, copies, layout)
    changes = {}
    for weight in weights:
        stored = None
        if not base.is_quantized:
            parameter = layout.find(weight.name, weight.output_dim).read(base.checkpoint)
            stored = parameter if weight.output_dim == -2 else parameter.T
        elif source.config.use_dora:
            raise InputError(
                f"{base.name}: it is quantized, and what a DoRA does depends on its weights. Give the unquantized "
                "model."
            )
        layer = _layer_of(weight, model)
        changes[weight.module] = [_change(weight.module, layers[weight.module], stored, layer, strength)]
    if not any((one.left.any() and one.right.any()) or one.scale is not None for (one,) in changes.values()):
        raise InputError(
            f"{source.name}: it changes nothing, because all of its products are zero. Give a trained one."
        )
    record = {
        "source": source.name,
        "sha256": source.sha256,
        "config_sha256": source.config_sha256,
        "form": source.form,
        "meaning": "adapter",
        "coefficient": float(strength),
        "site": "weights",
        "numbering": None,
        "source_layer": None,
        "layers": sorted(ChangedWeights(changes).decoder_layers),
    }
    provenance = {"imported": record, "versions": library_versions()}
    return with_weight_digests(SpectralEdit(EditedLayers({}), provenance, ChangedWeights(changes)), base)


def _warn_of_other_base(source: AdapterSource, base: Base) -> None:
    if source.base is not None and is_hub_id(source.base) and is_hub_id(base.name) and source.base != base.name:
        logger.warning("%s: the adapter was made for %s, and not for %s.", source.name, source.base, base.name)


def _peft_layers(source: AdapterSource, model: PreTrainedModel) -> tuple[dict[str, Linear], dict[str, Tensor]]:
    """What PEFT makes of the adapter: its layers, with the tensors in them, by the names of the linear maps; and the
    parameters of the base that it replaces, by name."""
    runnable = with_random_weights(model)
    with (
        warnings.catch_warnings(),
        refused_by_library(f"{source.name}: PEFT cannot put it on this model", "Give the model that it was made for."),
    ):
        warnings.simplefilter("ignore")  # about layouts of weights that PEFT then sets right by itself
        adapted: Any = get_peft_model(runnable, source.config, low_cpu_mem_usage=True)
        own = dict(adapted.get_base_model().named_parameters())
        report: Any = set_peft_model_state_dict(adapted, dict(source.tensors), low_cpu_mem_usage=True)
    if report.unexpected_keys:
        raise InputError(
            f"{source.name}: it has a tensor {report.unexpected_keys[0]}, which belongs to no module of the model that "
            "its config names. Give the model that the adapter was made for."
        )
    replaced = {
        name.replace(".base_layer.", "."): parameter.detach()
        for name, parameter in adapted.get_base_model().named_parameters()
        if own[name] is not parameter and not any(part.startswith("lora_") for part in name.split("."))
    }
    found = {}
    used = len(replaced)
    for name, module in adapted.get_base_model().named_modules():
        if isinstance(module, LoraLayer):
            if type(module) is not Linear:
                raise InputError(
                    f"{source.name}: it changes {name}, which is no linear map that an edit can change (PEFT: "
                    f"{type(module).__name__}). Merge the adapter into its base with PEFT's merge_and_unload."
                )
            tensors = _tensors(module)
            missing = [kind for kind, tensor in tensors.items() if tensor.is_meta]
            if missing:
                raise InputError(f"{source.name}: it has no {missing[0]} of {name}. Get the adapter again.")
            used += len(tensors)
            found[name] = module
    if used != len(source.tensors):
        raise InputError(
            f"{source.name}: it has {len(source.tensors)} tensors, and PEFT uses {used} of them. Get the adapter again."
        )
    return found, replaced


def _check_copies(source: AdapterSource, base: Base, copies: Mapping[str, Tensor], layout: StoredLayout) -> None:
    """Refuses an adapter with other weights of the base than the base has. PEFT saves the head and the embedding too,
    where an adapter changes them."""
    for name, copy in copies.items():
        known = copy.ndim == 2 and not base.is_quantized
        stored = layout.find(name, -2).read(base.checkpoint) if known else None
        if stored is None or stored.shape != copy.shape or not torch.equal(stored.to(copy.dtype), copy):
            raise InputError(
                f"{source.name}: it replaces {name} of the model by another one, and only changes of linear maps by "
                "LoRA and DoRA are imported. Merge the adapter into its base with PEFT's merge_and_unload."
            )


def _tensors(module: Linear) -> dict[str, Tensor]:
    kinds = ("lora_A", "lora_B", "lora_magnitude_vector")
    parts = {kind: module.get_submodule(kind) for kind in kinds}
    return {
        kind: part.get_parameter(f"{_ADAPTER}.weight").detach()
        for kind, part in parts.items()
        if len(list(part.parameters()))
    }


def _layer_of(weight: ProjectionWeight, model: PreTrainedModel) -> int | None:
    """The decoder layer of a linear map; None for the head."""
    list_name, _ = decoder_layers(model)
    if match := re.match(rf"{re.escape(list_name)}\.(\d+)\.", weight.module):
        return int(match[1])
    if model.get_submodule(weight.module) is model.get_output_embeddings():
        return None
    raise InputError(
        f"{weight.module}: an adapter changes it, and it is neither in a decoder layer nor the head of the model. "
        "Merge the adapter into its base with PEFT's merge_and_unload."
    )


def _change(module: str, lora: Linear, stored: Tensor | None, layer: int | None, strength: float) -> WeightChange:
    """The change of one weight. See `sea_export.edit.weight_change` for the equations.

    Args:
        module: the name of the linear map.
        lora: PEFT's layer of it.
        stored: (out, in) the weight; None for one that is stored quantized.
        layer: its decoder layer.
        strength: the strength of the change.
    """
    tensors = {name: tensor.double().cpu() for name, tensor in _tensors(lora).items()}
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise InputError(
                f"{module}: its {name} in the adapter has values that are not finite. Get the adapter again."
            )
    left, right = lora.scaling[_ADAPTER] * tensors["lora_B"], tensors["lora_A"]
    magnitudes = tensors.get("lora_magnitude_vector")
    scale = None
    if magnitudes is not None:
        assert stored is not None
        norms = torch.cat([(rows + change).norm(dim=1) for rows, change in _rows(stored, left, right)])
        if not norms.all():
            raise InputError(
                f"{module}: a row of its weight is zero with the adapter, which DoRA divides by. Get another."
            )
        scale = magnitudes.reshape(-1) / norms
        left = scale[:, None] * left
    change = WeightChange(left, right, scale, strength, layer, _relative_change(stored, left, right, scale))
    change = change.map_tensors(lambda tensor: tensor.float().contiguous())
    if not change.is_finite:
        raise InputError(f"{module}: its change by the adapter is too large for float32. Get the adapter again.")
    return change


def _relative_change(stored: Tensor | None, left: Tensor, right: Tensor, scale: Tensor | None) -> float | None:
    """‖D W + L R - W‖ / ‖W‖; None for a weight that is not known, or zero."""
    if stored is None:
        return None
    squares, change_squares, start = 0.0, 0.0, 0
    for rows, change in _rows(stored, left, right):
        scaled = change if scale is None else change + (scale[start : start + len(rows), None] - 1) * rows
        squares += float(rows.square().sum())
        change_squares += float(scaled.square().sum())
        start += len(rows)
    return (change_squares / squares) ** 0.5 if squares > 0 else None


def _rows(stored: Tensor, left: Tensor, right: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Some rows of W and of L R at a time, in float64."""
    for rows, factors in zip(stored.split(_ROWS), left.split(_ROWS), strict=True):
        yield rows.double(), factors @ right
