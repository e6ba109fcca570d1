"""The layer edits of an edit, by what they edit: found by a target, or by the number of a layer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import overload

from torch import Tensor

from sea_export.edit.layer_algebra import dense_constant, dense_matrix, sum_of_changes
from sea_export.edit.layer_edit import LayerEdit
from sea_export.errors import InputError
from sea_export.model.targets import Target

__all__ = ["EditedLayers", "LayerEdits", "product_of_layers", "sum_of_layers"]


class LayerEdits(tuple[LayerEdit, ...]):
    """The edits of one target, in the order in which they are applied."""

    __slots__ = ()

    def matrix(self) -> Tensor:
        """(d, d) M of h ↦ M h + t, what all of them do together, in float64.

        Raises:
            InputError: an edit is not linear, so that it has no matrix.
        """
        return dense_matrix(self)

    def constant(self) -> Tensor:
        """(d,) t of h ↦ M h + t, in float64; zeros where no constant is added.

        Raises:
            InputError: an edit is not linear.
        """
        return dense_constant(self)


class EditedLayers(Mapping[Target, LayerEdits]):
    """Target -> its layer edits. The number of a layer stands for its one target.

    Args:
        layers: the layer edits of each target.
    """

    def __init__(self, layers: Mapping[Target, Iterable[LayerEdit]]) -> None:
        self._layers = {
            target: edits if isinstance(edits, LayerEdits) else LayerEdits(edits) for target, edits in layers.items()
        }

    @overload
    def __getitem__(self, target: Target) -> LayerEdits: ...
    @overload
    def __getitem__(self, target: int) -> LayerEdits: ...
    def __getitem__(self, target: Target | int) -> LayerEdits:
        """The edits of a target.

        Raises:
            KeyError: it is not edited.
            InputError: several targets of the layer of this number are edited.
        """
        if not isinstance(target, int):
            return self._layers[target]
        found = [one for one in self._layers if one.in_decoder and one.layer == target]
        if len(found) > 1:
            raise InputError(
                f"layer {target}: {' and '.join(one.component for one in sorted(found))} of it are edited. Give one of "
                f"them, such as {found[0]!r}."
            )
        if not found:
            raise KeyError(target)
        return self._layers[found[0]]

    def part(self, layer: int | None) -> EditedLayers:
        """What is edited in one decoder layer, which may be nothing.

        Args:
            layer: its number; None for what comes before the first layer.
        """
        own = {one: edits for one, edits in self.items() if (one.layer if one.in_decoder else None) == layer}
        return EditedLayers(own)

    def __iter__(self) -> Iterator[Target]:
        return iter(self._layers)

    def __len__(self) -> int:
        return len(self._layers)


def product_of_layers(members: Sequence[EditedLayers]) -> EditedLayers:
    """The product of several edits, target by target. The first one is applied first.

    Args:
        members: at least one; they may edit different targets.

    Raises:
        InputError: they are of different hidden size.
    """
    return EditedLayers({target: [edit for one in own for edit in one] for target, own in _by_target(members).items()})


def sum_of_layers(members: Sequence[EditedLayers]) -> EditedLayers:
    """The sum of the changes of several edits, target by target: see `sum_of_changes`.

    Args:
        members: at least one; they may edit different targets.

    Raises:
        InputError: they are of different hidden size, or see `sum_of_changes`.
    """
    return EditedLayers({target: [sum_of_changes(own)] for target, own in _by_target(members).items()})


def _by_target(members: Sequence[EditedLayers]) -> dict[Target, list[LayerEdits]]:
    sizes = {edit.size for member in members for edits in member.values() for edit in edits}
    if len(sizes) > 1:
        raise InputError(f"edits: they have different hidden sizes {sorted(sizes)}. Give edits of the same model.")
    found: dict[Target, list[LayerEdits]] = {}
    for member in members:
        for target, edits in member.items():
            found.setdefault(target, []).append(edits)
    return found
