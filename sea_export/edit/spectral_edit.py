"""The fitted edit of a model: the edits of all targets, installed on live models, saved and loaded.

What an edit computes is in `sea_export.edit.layer_edit`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sea_export.edit.layer_edit import LayerEdit
from sea_export.edit.python_words import python_words
from sea_export.edit.representation import html_table, one_line
from sea_export.edit.storage import layers_of, write_edit
from sea_export.edit.stored_edit import StoredEdit, read_stored_edit
from sea_export.edit.summary import LayerSummary
from sea_export.errors import InputError
from sea_export.files.frames import data_frame
from sea_export.model.architecture import OutputProjection, find_output_projections
from sea_export.model.targets import Target

if TYPE_CHECKING:
    from pandas import DataFrame
    from transformers import PreTrainedModel

__all__ = ["EditHook", "SpectralEdit", "compose"]


@dataclass(frozen=True, repr=False)
class SpectralEdit:
    """A fitted edit of a model: for each target the layer edits that are applied to its output, one after the other.

    A fit gives each target one layer edit, and composition gives more. `provenance` is plain JSON data: the base model,
    the digest of the demonstrations and every option. `edit * 0.5` is the edit at half its strength.
    """

    layers: Mapping[Target, tuple[LayerEdit, ...]]
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.layers or not all(self.layers.values()):
            raise InputError("the edit: it has no layer, or a layer without an edit. Fit it again.")

    def __repr__(self) -> str:
        return one_line(self.layers)

    def _repr_html_(self) -> str:
        """What a notebook shows: a row for each layer edit."""
        return html_table(self.layers)

    def __mul__(self, factor: float) -> SpectralEdit:
        with python_words():
            return self._scaled(lambda strength: factor * strength)

    __rmul__ = __mul__

    @property
    def targets(self) -> tuple[Target, ...]:
        """The edited targets, sorted by layer."""
        return tuple(sorted(self.layers))

    @property
    def needs_bias(self) -> bool:
        """Whether any output projection must have a bias to hold the edit (`center="affine"`)."""
        return any(edit.needs_bias for edits in self.layers.values() for edit in edits)

    @property
    def why_unfoldable(self) -> str | None:
        """Why no weight can hold the edit, and what could be fitted instead; None for an edit that folds."""
        reasons = (edit.why_unfoldable for edits in self.layers.values() for edit in edits)
        return next(filter(None, reasons), None)

    @property
    def has_a_dial(self) -> bool:
        """Whether the edit can be given another strength."""
        return all(edit.has_a_dial for edits in self.layers.values() for edit in edits)

    @property
    def relative_change(self) -> float:
        """The largest relative change of any layer. If it is tiny, the edit does nothing."""
        return max(edit.relative_change for edits in self.layers.values() for edit in edits)

    @property
    def summary(self) -> tuple[LayerSummary, ...]:
        """What is told about each layer edit, sorted by target."""
        return tuple(edit.summary(target) for target in self.targets for edit in self.layers[target])

    def with_strength(self, strength: float) -> SpectralEdit:
        """The same edit at another strength: what a fit with that strength gives, but for rounding in float32.

        Each edit of a product gets that strength. What was measured of an edit does not hold at another strength, and
        is no part of the result.

        Args:
            strength: s in I + s (M - I). At 0 nothing is edited.

        Raises:
            InputError: see `LayerEdit.with_strength`.
        """
        return self._scaled(lambda _: strength)

    def with_layers(self, layers: Collection[int]) -> SpectralEdit:
        """The same edit in some of its layers only. What was measured of it does not hold for that, and is left out.

        Args:
            layers: numbers of decoder layers. Those that are not edited do not count.

        Raises:
            InputError: none of them is edited.
        """
        kept = {target: edits for target, edits in self.layers.items() if target.layer in layers}
        if len(kept) == len(self.layers):
            return self
        numbers = sorted({target.layer for target in kept})
        return SpectralEdit(kept, _changed_provenance(self.provenance, lambda one: {**one, "kept_layers": numbers}))

    @contextmanager
    def apply(
        self,
        model: PreTrainedModel,
        projections: Sequence[OutputProjection] | None = None,
        *,
        strength: float | None = None,
    ) -> Iterator[PreTrainedModel]:
        """Installs the run-time edit on a live model, and removes it when the context ends.

        Args:
            model: a causal language model of the architecture that the edit was fitted on.
            projections: the output projections of the edit's targets in it; they are searched for if None.
            strength: see `with_strength`; None for the edit's own.

        Raises:
            InputError: the model has no such layer, or another hidden size; or see `with_strength`.
        """
        with python_words():
            layers = self.layers if strength is None else self.with_strength(strength).layers
        if projections is None:
            projections = find_output_projections(model, self.targets)
        self.check_sizes(projections)
        with ExitStack() as hooks:
            for projection in projections:
                module = model.get_submodule(projection.module_name)
                device = next(chain(module.parameters(), module.buffers())).device
                edits: Sequence[LayerEdit] = layers[projection.target]
                if device.type != "meta":  # else weights are loaded later, and the edit follows the activations
                    edits = [edit.to(device) for edit in edits]
                handle = module.register_forward_hook(EditHook(edits))
                hooks.callback(handle.remove)
            yield model

    def check_sizes(self, projections: Iterable[OutputProjection]) -> None:
        """Raises InputError if an output projection gives another number of features than the edit of it has."""
        for projection in projections:
            size = self.layers[projection.target][0].size
            if projection.size != size:
                raise InputError(
                    f"{projection.module_name}: it gives {projection.size} features, and the edit has {size}. Give the "
                    "model that the edit was fitted on."
                )

    def to_dict(self) -> dict[str, Any]:
        """What is told about the edit, without its tensors, as plain JSON data."""
        return {"layers": [layer.to_dict() for layer in self.summary], "provenance": dict(self.provenance)}

    def to_frame(self) -> DataFrame:
        """A row for each layer edit, as a data frame of pandas.

        Raises:
            InputError: pandas is not installed.
        """
        return data_frame([layer.to_dict() for layer in self.summary])

    def save(self, directory: Path | str) -> None:
        """Writes `sea_edit.safetensors` and `sea_edit.json`. The same edit gives the same bytes.

        Args:
            directory: where, made if it is missing.
        """
        layers = {str(target): self.layers[target] for target in self.targets}
        write_edit(Path(directory), layers, self.provenance)

    @classmethod
    def load(cls, directory: Path | str) -> SpectralEdit:
        """Reads an edit.

        Args:
            directory: what `save` wrote, or a checkpoint that sea-export wrote, whose `sea_edit/` is read.

        Raises:
            InputError: there is no edit, or it is damaged or of a later format.
        """
        return cls.from_stored(read_stored_edit(Path(directory)))

    @classmethod
    def from_stored(cls, stored: StoredEdit) -> SpectralEdit:
        """An edit that was read.

        Args:
            stored: what `sea_export.edit.stored_edit.read_stored_edit` gave.
        """
        return cls(layers_of(stored), stored.provenance)

    def _scaled(self, strength: Callable[[float], float]) -> SpectralEdit:
        layers = {
            target: tuple(edit.with_strength(strength(edit.strength)) for edit in edits)
            for target, edits in self.layers.items()
        }
        return SpectralEdit(layers, _changed_provenance(self.provenance, lambda one: _at_strength(one, strength)))


class EditHook:
    """Forward hook that replaces the output of a module, or the first of several outputs, by the edited one."""

    def __init__(self, edits: Sequence[LayerEdit]) -> None:
        self.edits = edits

    def __call__(self, module: torch.nn.Module, inputs: object, output: Any) -> Any:
        several = isinstance(output, (tuple, list))
        edited = output[0] if several else output
        for edit in self.edits:
            edited = edit.apply(edited)
        return type(output)((edited, *output[1:])) if several else edited


def _changed_provenance(
    provenance: Mapping[str, Any], change: Callable[[dict[str, Any]], dict[str, Any]]
) -> dict[str, Any]:
    """The provenance of an edit that is no longer the fitted one: changed for each fit, and without measurements."""
    if "composed" in provenance:
        return {**provenance, "composed": [_changed_provenance(one, change) for one in provenance["composed"]]}
    return change({name: entry for name, entry in provenance.items() if name not in ("effect", "examples")})


def _at_strength(provenance: dict[str, Any], strength: Callable[[float], float]) -> dict[str, Any]:
    """The provenance of a fit with another strength, and with the fitted one."""
    options = provenance.get("options")
    if not options:
        return provenance
    fitted = options["edit"]["strength"]
    return {
        **provenance,
        "options": {**options, "edit": {**options["edit"], "strength": strength(fitted)}},
        "fitted_strength": provenance.get("fitted_strength", fitted),
    }


def compose(edits: Sequence[SpectralEdit]) -> SpectralEdit:
    """The product of several edits, layer by layer. The first one is applied first.

    Args:
        edits: at least one edit; they may edit different layers.

    Raises:
        InputError: the edits were fitted on models of different hidden size or on different bases.
    """
    if len(edits) == 1:
        return edits[0]
    sizes = {edit.size for member in edits for layer in member.layers.values() for edit in layer}
    if len(sizes) > 1:
        raise InputError(f"edits: they have different hidden sizes {sorted(sizes)}. Give edits of the same model.")
    bases = [member.provenance.get("base") or {} for member in edits]
    known = {tuple(sorted(base["weights"].values())): base.get("name") for base in bases if base.get("weights")}
    if len(known) > 1:
        raise InputError(
            f"edits: they were fitted on different weights ({', '.join(map(str, known.values()))}). Fit all of them on "
            "the same base."
        )
    layers: dict[Target, tuple[LayerEdit, ...]] = {}
    for member in edits:
        for target, layer in member.layers.items():
            layers[target] = layers.get(target, ()) + layer
    provenance = {
        "base": edits[0].provenance.get("base"),
        "composed": [dict(member.provenance) for member in edits],
    }
    return SpectralEdit(layers=layers, provenance=provenance)
