"""The fitted edit of a model: the edits of all targets, installed on live models, saved and loaded.

What an edit computes is in `sea_export.edit.layer_edit`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from sea_export.edit.changed_weights import ChangedWeights, product_of_weights, sum_of_weights
from sea_export.edit.combined_provenance import combined_provenance, is_sum, restricted_provenance, scaled_provenance
from sea_export.edit.edit_hook import EditHook
from sea_export.edit.edited_layers import EditedLayers, product_of_layers, sum_of_layers
from sea_export.edit.layer_edit import LayerEdit
from sea_export.edit.python_words import python_words
from sea_export.edit.representation import html_table, one_line
from sea_export.edit.storage import layers_of, weight_changes_of, write_edit
from sea_export.edit.stored_edit import StoredEdit, read_stored_edit
from sea_export.edit.summary import LayerSummary
from sea_export.edit.vector_edit import vector_layer_edit
from sea_export.errors import InputError
from sea_export.files.frames import data_frame
from sea_export.model.architecture import OutputProjection, find_output_projections
from sea_export.model.targets import COMPONENTS, Target
from sea_export.options import TARGETS, check_choice

if TYPE_CHECKING:
    from pandas import DataFrame
    from transformers import PreTrainedModel

__all__ = ["SpectralEdit", "combined", "compose", "load_edit"]


@dataclass(frozen=True, repr=False)
class SpectralEdit:
    """A fitted edit of a model: for each target the layer edits that are applied to its output, one after the other.

    A fit gives each target one layer edit, and composition gives more. `provenance` is plain JSON data: the base model,
    the digest of the demonstrations and every option.

    Linear edits are a vector space of changes. `edit * 0.5` is the edit at half its strength. `a + b` changes what a
    changes and what b changes: M = I + (Mₐ - I) + (M_b - I), and the constants are added. `-edit` takes the change off,
    as steering in the other direction does: it is not the inverse, so that `edit` and then `-edit` is the base only
    where no change acts on another. `a - b` is `a + (-b)`, and `a - a` changes nothing. The product, where b acts on
    what a gives, is `compose([a, b])`; for constants alone both are the same.

    `edit.layers[12].matrix()` is M of layer 12, and `.constant()` what is added there.
    """

    layers: EditedLayers
    """Target -> its layer edits. A plain mapping may be given."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    weight_changes: ChangedWeights = field(default_factory=lambda: ChangedWeights({}))
    """Name of a linear map -> the changes of its weight, such as those of an adapter. A plain mapping may be given."""

    def __post_init__(self) -> None:
        if not isinstance(self.layers, EditedLayers):
            object.__setattr__(self, "layers", EditedLayers(self.layers))
        if not isinstance(self.weight_changes, ChangedWeights):
            object.__setattr__(self, "weight_changes", ChangedWeights(self.weight_changes))
        if not (self.layers or self.weight_changes) or not all(self.layers.values()):
            raise InputError("the edit: it has no layer, or a layer without an edit. Fit it again.")

    def __repr__(self) -> str:
        return one_line(self.layers, self.weight_changes)

    def _repr_html_(self) -> str:
        """What a notebook shows: a row for each layer edit, and for each weight change."""
        return html_table(self.layers, self.weight_changes)

    def __mul__(self, factor: float) -> SpectralEdit:
        with python_words():
            return self._scaled(lambda strength: factor * strength)

    __rmul__ = __mul__

    def __neg__(self) -> SpectralEdit:
        return self * -1.0

    def __add__(self, other: SpectralEdit) -> SpectralEdit:
        if not isinstance(other, SpectralEdit):
            return NotImplemented
        with python_words():
            return _total([self, other])

    def __sub__(self, other: SpectralEdit) -> SpectralEdit:
        return self + -other if isinstance(other, SpectralEdit) else NotImplemented

    @property
    def targets(self) -> tuple[Target, ...]:
        """The targets whose outputs are edited, sorted by layer."""
        return tuple(sorted(self.layers))

    @property
    def decoder_layers(self) -> tuple[int, ...]:
        """The numbers of the decoder layers in which anything is edited, sorted."""
        outputs = {target.layer for target in self.layers if target.in_decoder}
        return tuple(sorted(outputs | self.weight_changes.decoder_layers))

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
        """The largest relative change of any layer that was measured; 0 if none was. If it is tiny, the edit does
        nothing."""
        changes = (edit.relative_change for edits in self.layers.values() for edit in edits)
        return max((change for change in changes if change is not None), default=0.0)

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

    def only(self, layers: Iterable[int]) -> SpectralEdit:
        """The same edit of some decoder layers alone.

        Args:
            layers: their numbers, counted from 0. Those that the edit does not change may be among them.

        Raises:
            InputError: nothing of the edit is left.
        """
        kept = set(layers)
        targets = [target for target in self.targets if target.in_decoder and target.layer in kept]
        return self._restricted(targets, self.weight_changes.where(kept.__contains__))

    def without(self, layers: Iterable[int]) -> SpectralEdit:
        """The same edit without some decoder layers.

        Args:
            layers: see `only`.

        Raises:
            InputError: nothing of the edit is left.
        """
        left_out = set(layers)
        targets = [target for target in self.targets if not (target.in_decoder and target.layer in left_out)]
        return self._restricted(targets, self.weight_changes.where(lambda layer: layer not in left_out))

    def part(self, layer: int | None) -> SpectralEdit | None:
        """What is edited in one decoder layer; None for nothing.

        Args:
            layer: its number; None for what comes before the first layer.
        """
        changes = ChangedWeights({}) if layer is None else self.weight_changes.where(lambda one: one == layer)
        return self._of(self.layers.part(layer), changes)

    def part_of_head(self) -> SpectralEdit | None:
        """What is edited after the last layer; None for nothing."""
        return self._of(EditedLayers({}), self.weight_changes.where(lambda layer: layer is None))

    def _of(self, layers: EditedLayers, changes: ChangedWeights) -> SpectralEdit | None:
        return SpectralEdit(layers, self.provenance, changes) if layers or changes else None

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
            InputError: the model has no such layer or linear map, or one of another size; or see `with_strength`.
        """
        with python_words():
            edit = self if strength is None else self.with_strength(strength)
        layers = edit.layers
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
            for module, hook in edit.weight_changes.hooks(model):
                hooks.callback(module.register_forward_hook(hook).remove)
            yield model

    def check_sizes(self, projections: Iterable[OutputProjection]) -> None:
        """Raises InputError if an output projection gives another number of features than the edit of it has, or if its
        weight is changed too."""
        projections = tuple(projections)
        self.weight_changes.check_apart(projections)
        for projection in projections:
            size = self.layers[projection.target][0].size
            if projection.size != size:
                raise InputError(
                    f"{projection.module_name}: it gives {projection.size} features, and the edit has {size}. Give the "
                    "model that the edit was fitted on."
                )

    def to_dict(self) -> dict[str, Any]:
        """What is told about the edit, without its tensors, as plain JSON data."""
        return {
            "layers": [layer.to_dict() for layer in self.summary],
            "weights": [weight.to_dict() for weight in self.weight_changes.summary],
            "provenance": dict(self.provenance),
        }

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
        write_edit(Path(directory), layers, self.provenance, self.weight_changes)

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
        return cls(EditedLayers(layers_of(stored)), stored.provenance, ChangedWeights(weight_changes_of(stored)))

    @classmethod
    def from_vectors(
        cls,
        vectors: Mapping[int, Tensor],
        kind: str = "add",
        *,
        coefficient: float = 1.0,
        target: str = "mlp",
        provenance: Mapping[str, Any] | None = None,
    ) -> SpectralEdit:
        """An edit made of vectors, such as those of another tool for steering.

        What is changed is the output of the MLP or of the attention block of each layer. A vector that belongs to the
        residual stream after a layer can be added to the output of its MLP where nothing but sums follows, and
        `sea_export.import_edit` checks that on the model.

        Args:
            vectors: decoder layer, counted from 0 -> (d,) one vector, or (k, d) several.
            kind: `add`, `ablate` or `project` (both remove what the output has along the vectors), or `keep` (it keeps
                nothing else). See `sea_export.edit.vector_edit`.
            coefficient: the strength of the edit.
            target: `mlp`, `attention` or `both`.
            provenance: where the vectors are from, as plain JSON data.

        Raises:
            InputError: a vector is zero or not finite, or an argument is wrong.
        """
        with python_words():
            check_choice("target", target, TARGETS)
            components = COMPONENTS if target == "both" else (target,)
            layers = {
                Target(layer, component): (vector_layer_edit(of_layer, kind, coefficient),)
                for layer, of_layer in vectors.items()
                for component in components
            }
            return cls(EditedLayers(layers), dict(provenance or {}))

    def _scaled(self, strength: Callable[[float], float]) -> SpectralEdit:
        layers = {
            target: tuple(edit.with_strength(strength(edit.strength)) for edit in edits)
            for target, edits in self.layers.items()
        }
        changes = self.weight_changes.with_strength(strength)
        return SpectralEdit(EditedLayers(layers), scaled_provenance(self.provenance, strength), changes)

    def _restricted(self, targets: Sequence[Target], changes: ChangedWeights) -> SpectralEdit:
        if not targets and not changes:
            edited = ", ".join(map(str, (*self.targets, *self.weight_changes)))
            raise InputError(f"the edit: nothing of it is left; it changes {edited}. Choose other layers.")
        if len(targets) == len(self.layers) and len(changes) == len(self.weight_changes):
            return self
        layers = EditedLayers({target: self.layers[target] for target in targets})
        kept = [*map(str, sorted(targets)), *changes]
        return SpectralEdit(layers, restricted_provenance(self.provenance, kept), changes)


def load_edit(directory: Path | str) -> SpectralEdit:
    """Reads an edit.

    Args:
        directory: what `SpectralEdit.save` or a command wrote, or a checkpoint that sea-export wrote.

    Raises:
        InputError: there is no edit, or it is damaged or of a later format.
    """
    return SpectralEdit.load(directory)


def compose(edits: Sequence[SpectralEdit]) -> SpectralEdit:
    """The product of several edits, layer by layer. The first one is applied first.

    Args:
        edits: at least one edit; they may edit different layers.

    Raises:
        InputError: the edits were fitted on models of different hidden size or on different bases.
    """
    if len(edits) == 1:
        return edits[0]
    provenance = combined_provenance([edit.provenance for edit in edits], as_sum=False)
    layers = product_of_layers([edit.layers for edit in edits])
    return SpectralEdit(layers, provenance, product_of_weights([edit.weight_changes for edit in edits]))


def combined(provenance: Mapping[str, Any], fitted: Iterator[SpectralEdit]) -> SpectralEdit:
    """An edit that was made of others, made again.

    Args:
        provenance: its record.
        fitted: the edits that it was made of in the end, in the order of their records.

    Raises:
        InputError: see `compose`.
    """
    if "composed" not in provenance:
        edit = next(fitted)
    else:
        members = [combined(member, fitted) for member in provenance["composed"]]
        edit = (
            _total(members).with_strength(provenance.get("strength", 1.0)) if is_sum(provenance) else compose(members)
        )
    kept = provenance.get("targets")
    if kept is None:
        return edit
    changes = {module: own for module, own in edit.weight_changes.items() if module in kept}
    return edit._restricted([target for target in edit.targets if str(target) in kept], ChangedWeights(changes))


def _total(edits: Sequence[SpectralEdit]) -> SpectralEdit:
    """The edit whose change is the sum of the changes of all edits, at strength 1."""
    provenance = combined_provenance([edit.provenance for edit in edits], as_sum=True)
    layers = sum_of_layers([edit.layers for edit in edits])
    return SpectralEdit(layers, provenance, sum_of_weights([edit.weight_changes for edit in edits]))
