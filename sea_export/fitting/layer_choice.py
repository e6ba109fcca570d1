"""Which targets of a model are edited: what `--layers` and `--target` mean for the model."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sea_export.errors import InputError
from sea_export.model.architecture import decoder_layers, layers_with
from sea_export.model.layer_numbers import layer_range
from sea_export.model.targets import COMPONENTS, Target
from sea_export.options import FitOptions

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["LayerChoice", "choose_targets", "kept_by_signature", "left_out_note"]


@dataclass(frozen=True)
class LayerChoice:
    """Which decoder layers are edited: what `--layers` means for a number of layers."""

    candidates: tuple[int, ...]
    """Layers to capture."""
    listed: bool = False
    """Whether every layer was asked for by its number."""

    @classmethod
    def parse(cls, text: str, count: int) -> LayerChoice:
        """Reads `all`, `signature:K`, or a list of ranges such as `last:6,first:2,10-20,25`.

        Args:
            text: what the user wrote. K is a number of layers, or a share of them: `60%`.
            count: the model's number of layers.

        Raises:
            InputError: it is none of these forms, or names a layer that does not exist.
        """
        kept = kept_by_signature(text, count)
        if kept is not None:
            _check_number(kept, text, count)
        if text == "all" or kept is not None:
            return cls(tuple(range(count)))
        parts = [_part(part, text, count) for part in text.split(",")]
        listed = not any(":" in part for part in text.split(","))
        return cls(tuple(sorted({layer for part in parts for layer in part})), listed)


def _part(part: str, text: str, count: int) -> range:
    """The layers of one part of a list."""
    if match := re.fullmatch(r"\s*(last|first):(\d+)(%?)\s*", part):
        number = _number(match[2], match[3], count)
        _check_number(number, part, count)
        return range(count - number, count) if match[1] == "last" else range(number)
    found = layer_range(part)
    if found is None:
        raise InputError(
            f"--layers: {text!r} is not understood at {part!r}. Write all, last:K, first:K, signature:K, or a "
            "list such as last:6,10-20,25."
        )
    if found[-1] >= count:
        raise InputError(f"--layers: {text} names layer {found[-1]}, which does not exist. Choose 0 to {count - 1}.")
    return found


def kept_by_signature(text: str, count: int) -> int | None:
    """How many layers `signature:K` keeps.

    Args:
        text: what the user wrote.
        count: the number of candidate layers.

    Returns:
        their number; None for the other forms, which keep all candidates.
    """
    match = re.fullmatch(r"signature:(\d+)(%?)", text)
    return None if match is None else _number(match[1], match[2], count)


def _number(digits: str, unit: str, count: int) -> int:
    """K layers. A share of `count` layers is at least one layer."""
    return max(1, round(count * int(digits) / 100)) if unit else int(digits)


def _check_number(number: int, text: str, count: int) -> None:
    if not 1 <= number <= count:
        raise InputError(f"--layers: {text} asks for {number} layers, and the model has {count}. Choose 1 to {count}.")


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
