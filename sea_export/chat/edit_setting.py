"""The strength and the layers in which an edit is tried."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

from sea_export.edit.spectral_edit import SpectralEdit
from sea_export.model.layer_list import layers_of_edit

__all__ = ["EditSetting"]

_ALL = "all"


@dataclass(frozen=True)
class EditSetting:
    """An edit at a strength, in some of its layers.

    Attributes:
        fitted: the edit as it is stored.
        strength: the strength; None for its own.
        layers: a list of layers, such as `last:3`; None for all that it edits.
    """

    fitted: SpectralEdit
    strength: float | None = None
    layers: str | None = None

    @cached_property
    def edit(self) -> SpectralEdit:
        """The edit that is applied: what `sea-export save` bakes with these options.

        Raises:
            InputError: see `SpectralEdit.with_strength` and `layers_of_edit`.
        """
        edit = self.fitted if self.strength is None else self.fitted.with_strength(self.strength)
        return edit if self.layers is None else edit.only(layers_of_edit(edit.decoder_layers, self.layers))

    @property
    def own_strength(self) -> float | None:
        """The strength of the stored edit; None for a product of edits of several strengths."""
        strengths = {edit.strength for edits in self.fitted.layers.values() for edit in edits}
        strengths |= {weight.strength for weight in self.fitted.weight_changes.summary}
        return strengths.pop() if len(strengths) == 1 else None

    @property
    def title(self) -> str:
        """The strength and the layers in words."""
        strength = self.own_strength if self.strength is None else self.strength
        own = "its own strength" if strength is None else f"strength {strength:g}"
        return own if self.layers is None else f"{own}, layers {self.layers}"

    def at_strength(self, strength: float | None) -> EditSetting:
        """The same layers at another strength.

        Args:
            strength: the strength; None for the edit's own.

        Raises:
            InputError: the edit cannot have it.
        """
        return _checked(replace(self, strength=strength))

    def in_layers(self, layers: str | None) -> EditSetting:
        """The same strength in other layers.

        Args:
            layers: a list of layers; `all` or None for all that the edit edits.

        Raises:
            InputError: the list is not understood, or names no edited layer.
        """
        return _checked(replace(self, layers=None if layers == _ALL else layers))


def _checked(setting: EditSetting) -> EditSetting:
    _ = setting.edit
    return setting
