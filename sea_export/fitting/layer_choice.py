"""Which targets of a model are edited: what `--layers` and `--target` mean for the model."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from sea_export.errors import InputError
from sea_export.model.architecture import decoder_layers, layers_with
from sea_export.model.layer_list import LayerChoice
from sea_export.model.targets import COMPONENTS, Target
from sea_export.options import FitOptions

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["choose_targets", "left_out_note"]


def choose_targets(model: PreTrainedModel, options: FitOptions) -> tuple[Target, ...]:
    """The targets that `options.layers` and `options.target` ask for.

    In a hybrid model some layers have no attention block, or no MLP. If layers were asked for as a range of the model
    (`all`, `last:K`, `first:K`, `signature:K`), those layers are left out. A layer that was listed is never left out.

    Args:
        model: the model, with or without its weights.
        options: `layers` and `target` are used.

    Raises:
        InputError: no layer of the range has such a block, or the layers are not understood.
    """
    wanted = _wanted_targets(model, options)
    if LayerChoice.parse(options.layers, len(decoder_layers(model)[1])).listed:
        return wanted
    found = tuple(target for target in wanted if target.layer in layers_with(model, target.component))
    if not found:
        raise InputError(
            f"--layers: none of the layers {options.layers} of {type(model).__name__} has what --target "
            f"{options.target} edits. Choose others."
        )
    return found


def left_out_note(model: PreTrainedModel, options: FitOptions, chosen: Collection[Target]) -> str | None:
    """What to tell the user about targets that `choose_targets` has left out, or None if there are none.

    Args:
        model: the model, on any device (`meta` included).
        options: those of the fit.
        chosen: what `choose_targets` gave.
    """
    left_out = sorted(set(_wanted_targets(model, options)) - set(chosen))
    if not left_out:
        return None
    return f"--layers: the model has no {', '.join(map(str, left_out))}, so that these are left out."


def _wanted_targets(model: PreTrainedModel, options: FitOptions) -> tuple[Target, ...]:
    choice = LayerChoice.parse(options.layers, len(decoder_layers(model)[1]))
    components = COMPONENTS if options.target == "both" else (options.target,)
    return tuple(Target(layer, component) for layer in choice.candidates for component in components)
