"""The weight changes of an edit, by the names of the linear maps whose weights they change."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from torch import nn

from sea_export.edit.summary import WeightSummary
from sea_export.edit.weight_change import WeightChange, WeightHook, check_same_shape, sum_of_weight_changes
from sea_export.errors import InputError
from sea_export.model.architecture import OutputProjection
from sea_export.model.linear_modules import linear_module, linear_shape

__all__ = ["ChangedWeights", "product_of_weights", "sum_of_weights"]


class ChangedWeights(Mapping[str, tuple[WeightChange, ...]]):
    """Name of a linear map in the model -> the changes of its weight, in the order in which they are applied.

    Linear maps are sorted by their layers; the head comes last.

    Args:
        changes: the changes of each weight.

    Raises:
        InputError: a weight has no change, or changes of different shapes.
    """

    def __init__(self, changes: Mapping[str, Iterable[WeightChange]]) -> None:
        listed = {module: tuple(own) for module, own in changes.items()}
        for module, own in listed.items():
            if not own:
                raise InputError(f"the edit: {module} has no change. Import it again.")
            check_same_shape(own, module)
        self._changes = {module: listed[module] for module in sorted(listed, key=lambda one: _place(one, listed[one]))}

    def __getitem__(self, module: str) -> tuple[WeightChange, ...]:
        return self._changes[module]

    def __iter__(self) -> Iterator[str]:
        return iter(self._changes)

    def __len__(self) -> int:
        return len(self._changes)

    @property
    def decoder_layers(self) -> set[int]:
        """The numbers of the decoder layers in which a weight is changed."""
        return {own[0].layer for own in self.values() if own[0].layer is not None}

    @property
    def summary(self) -> tuple[WeightSummary, ...]:
        """What is told about each change."""
        return tuple(change.summary(module) for module, own in self.items() for change in own)

    def where(self, wanted: Callable[[int | None], bool]) -> ChangedWeights:
        """The changes in some layers, which may be none.

        Args:
            wanted: told the number of a decoder layer, or None for the head.
        """
        return ChangedWeights({module: own for module, own in self.items() if wanted(own[0].layer)})

    def with_strength(self, strength: Callable[[float], float]) -> ChangedWeights:
        """The same changes at other strengths.

        Args:
            strength: gives the strength for the one that a change has.

        Raises:
            InputError: a strength is out of range.
        """
        return ChangedWeights(
            {module: [one.with_strength(strength(one.strength)) for one in own] for module, own in self.items()}
        )

    def hooks(self, model: nn.Module) -> Iterator[tuple[nn.Module, WeightHook]]:
        """The linear maps of a live model, each with the hook that changes what it gives.

        Args:
            model: the model.

        Raises:
            InputError: it has no such linear map, or one of another shape.
        """
        self.check_shapes(model)
        for name, changes in self.items():
            module = linear_module(model, name)
            device = next(module.parameters()).device
            if device.type != "meta":  # else weights are loaded later, and the change follows the activations
                changes = tuple(change.to(device) for change in changes)
            yield module, WeightHook(changes)

    def check_shapes(self, model: nn.Module) -> None:
        """Raises InputError if a model has no such linear map, or one of another shape.

        Args:
            model: the model, on any device (`meta` included).
        """
        for name, changes in self.items():
            shape, wanted = linear_shape(linear_module(model, name)), changes[0].shape
            if shape != wanted:
                raise InputError(
                    f"{name}: its weight has the shape {shape}, and the edit changes one of the shape {wanted}. Give "
                    "the model that the edit was made for."
                )

    def check_apart(self, projections: Iterable[OutputProjection]) -> None:
        """Raises InputError if a weight that is changed by itself also gives an output that is edited.

        Args:
            projections: the output projections of the targets that are edited.
        """
        for projection in projections:
            for weight in projection.weights:
                if weight.module in self:
                    raise InputError(
                        f"{weight.module}: one edit changes its weight, and another one the output {projection.target} "
                        "that it gives. Bake one of them first, and the other into the output of that."
                    )


def product_of_weights(members: Sequence[ChangedWeights]) -> ChangedWeights:
    """The changes of several edits, weight by weight, one after the other.

    Args:
        members: those of each edit, in their order.

    Raises:
        InputError: they are of weights of different shapes.
    """
    found = _by_module(members)
    return ChangedWeights({module: [one for own in changes for one in own] for module, changes in found.items()})


def sum_of_weights(members: Sequence[ChangedWeights]) -> ChangedWeights:
    """The sum of the changes of several edits, weight by weight: see `sum_of_weight_changes`.

    Args:
        members: those of each edit.

    Raises:
        InputError: they are of weights of different shapes.
    """
    return ChangedWeights({module: [sum_of_weight_changes(own)] for module, own in _by_module(members).items()})


def _by_module(members: Sequence[ChangedWeights]) -> dict[str, list[tuple[WeightChange, ...]]]:
    found: dict[str, list[tuple[WeightChange, ...]]] = {}
    for member in members:
        for module, changes in member.items():
            found.setdefault(module, []).append(changes)
    return found


def _place(module: str, changes: Sequence[WeightChange]) -> tuple[bool, int, str]:
    """What sorts linear maps: by layers, the head last."""
    layer = changes[0].layer
    return layer is None, layer or 0, module
