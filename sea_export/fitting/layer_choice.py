"""Which places of a model are edited: what `--layers` and `--target` say, read against the model."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sea_export.errors import InputError
from sea_export.model.architecture import decoder_layers, layers_with
from sea_export.model.targets import COMPONENTS, Target
from sea_export.options import FitOptions

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["LayerChoice", "choose_targets", "kept_by_signature", "passed_over_note"]


@dataclass(frozen=True)
class LayerChoice:
    """Which decoder layers are edited: what `--layers` says, read against the number of layers."""

    candidates: tuple[int, ...]
    """Layers to capture."""
    listed: bool = False
    """Whether every layer was asked for by its number."""

    @classmethod
    def parse(cls, text: str, count: int) -> LayerChoice:
        """Reads `all`, `last:K`, `first:K`, `signature:K`, or ranges and lists such as `10-20,25`.

        Args:
            text: what the user wrote. K is a number of layers, or a share of them: `60%`.
            count: the model's number of layers.

        Raises:
            InputError: it is none of these forms, or names a layer that does not exist.
        """
        everything = tuple(range(count))
        if text == "all":
            return cls(everything)
        if match := re.fullmatch(r"(last|first|signature):(\d+)(%?)", text):
            number = _number(match[2], match[3], count)
            if not 1 <= number <= count:
                raise InputError(f"--layers {text}: the model has {count} layers, so choose 1 to {count}")
            if match[1] == "signature":
                return cls(everything)
            return cls(everything[-number:] if match[1] == "last" else everything[:number])
        chosen: set[int] = set()
        for part in text.split(","):
            match = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part)
            if not match or int(match[2] or match[1]) < int(match[1]):
                raise InputError(
                    f"--layers {text!r} is not understood at {part!r}: "
                    "write all, last:K, first:K, signature:K, or a list such as 10-20,25"
                )
            last = int(match[2] or match[1])
            if last >= count:
                raise InputError(f"--layers {text}: layer {last} does not exist, the model has layers 0 to {count - 1}")
            chosen.update(range(int(match[1]), last + 1))
        return cls(tuple(sorted(chosen)), listed=True)


def kept_by_signature(text: str, count: int) -> int | None:
    """How many of `count` layers with a spectrum `signature:K` keeps; None for the other forms, which keep all."""
    match = re.fullmatch(r"signature:(\d+)(%?)", text)
    return None if match is None else _number(match[1], match[2], count)


def _number(digits: str, unit: str, count: int) -> int:
    """K, which may be a share of `count` layers: then one layer at least."""
    return max(1, round(count * int(digits) / 100)) if unit else int(digits)


def choose_targets(model: PreTrainedModel, options: FitOptions) -> tuple[Target, ...]:
    """The places whose activations `options.layers` and `options.target` ask for.

    In a hybrid model some layers have no attention block, or no MLP. Where layers were asked for as a range of the
    model (`all`, `last:K`, `first:K`, `signature:K`), those are passed over; a layer that was listed is not.

    Raises:
        InputError: no layer of the range has such a block, or the layers are not understood.
    """
    wanted = _wanted_places(model, options)
    if LayerChoice.parse(options.layers, len(decoder_layers(model)[1])).listed:
        return wanted
    found = tuple(target for target in wanted if target.layer in layers_with(model, target.component))
    if not found:
        raise InputError(
            f"none of the layers {options.layers} of {type(model).__name__} has what --target {options.target} edits: "
            "choose others"
        )
    return found


def passed_over_note(model: PreTrainedModel, options: FitOptions) -> str | None:
    """What to tell the user about layers that `choose_targets` passes over, or None if there are none."""
    passed = sorted(set(_wanted_places(model, options)) - set(choose_targets(model, options)))
    if not passed:
        return None
    places = ", ".join(map(str, passed))
    return f"layers without the block that is to be edited are passed over: {places}"


def _wanted_places(model: PreTrainedModel, options: FitOptions) -> tuple[Target, ...]:
    choice = LayerChoice.parse(options.layers, len(decoder_layers(model)[1]))
    components = COMPONENTS if options.target == "both" else (options.target,)
    return tuple(Target(layer, component) for layer in choice.candidates for component in components)
