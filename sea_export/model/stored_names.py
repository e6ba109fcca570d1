"""Which parameter of a model each stored tensor becomes, by transformers' own rules for loading.

Transformers 5 and later renames stored tensors while it loads them, and converts some: experts that are stored one by
one become one stacked parameter. Its own rules are used here, so that every checkpoint that it loads is understood.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sea_export.model.checkpoint import Checkpoint

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["conversions_of", "parameter_names"]


def conversions_of(model: PreTrainedModel) -> list[Any]:
    """The renamings and converters by which transformers makes parameters from stored tensors, in their order.

    Args:
        model: the model, on any device (`meta` included).
    """
    from transformers.conversion_mapping import get_model_conversion_mapping

    conversions: list[Any] = get_model_conversion_mapping(model)
    return conversions


def parameter_names(model: PreTrainedModel, checkpoint: Checkpoint) -> dict[str, tuple[str, str | None]]:
    """The name in the model of each stored tensor, in the order of loading.

    Args:
        model: the model, on any device (`meta` included).
        checkpoint: the checkpoint.

    Returns:
        Stored name -> the name in the model, and the pattern of the converter that takes the tensor, or None. If the
        model does not have that name, the tensor is not loaded.
    """
    from transformers.core_model_loading import WeightConverter, dot_natural_key, rename_source_key

    conversions = conversions_of(model)
    converters = [entry for entry in conversions if isinstance(entry, WeightConverter)]
    renamings = [entry for entry in conversions if not isinstance(entry, WeightConverter)]
    prefix, own = model.base_model_prefix, model.state_dict()
    names = {}
    for stored in sorted(checkpoint.tensors, key=dot_natural_key):
        name, pattern = rename_source_key(stored, renamings, converters, prefix, own)
        if name not in own and stored in own:
            name, pattern = rename_source_key(stored, [], [], prefix, own)
        names[stored] = (name, pattern)
    return names
