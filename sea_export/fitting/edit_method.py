"""What a method is: it says which statistics of activations it needs, and makes layer edits from them.

Everything that fits an edit goes through this protocol, so that a method is one module and one line in
`sea_export.options.METHODS`. A method works in three steps:

1. An accumulator for each target takes captured activations, batch by batch. Several processes may each fill one.
   Gradients are collected for all methods in the same way (`sea_export.fitting.collect_gradients`).
2. The accumulator is finished once. What comes out is kept: edits with other `EditOptions` are made from it.
3. Layer edits are made from the finished statistics of all targets.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar, cast

import torch

from sea_export.capture.activations import Activations
from sea_export.edit.layer_edit import LayerEdit
from sea_export.errors import InputError
from sea_export.fitting.activation_statistics import Statistic
from sea_export.model.targets import Target
from sea_export.options import METHODS, FitOptions, check_choice

__all__ = [
    "Accumulator",
    "ActivationMethod",
    "EditMethod",
    "FinishedStatistics",
    "activation_method",
    "edit_method",
    "errors_of",
]


class FinishedStatistics(Protocol):
    """What a method makes the edit of one target from. It can be pickled, and holds its tensors on one device."""

    @property
    def signature(self) -> float:
        """How far the target tells positive from negative completions apart; `--layers signature:K` ranks by it."""


Finished = TypeVar("Finished", bound=FinishedStatistics)
FinishedOut = TypeVar("FinishedOut", bound=FinishedStatistics, covariant=True)
FinishedIn = TypeVar("FinishedIn", bound=FinishedStatistics, contravariant=True)
_Self = TypeVar("_Self")


class Accumulator(Protocol[FinishedOut]):
    """What takes the activations of one target. It can be pickled."""

    def update(self: _Self, activations: Activations) -> _Self:
        """Adds the activations of some demonstrations, each kind (batch, d), and returns the accumulator itself.

        Raises:
            InputError: the activations cannot be used. The caller puts the target's name in front of the message.
        """

    def merge(self: _Self, other: _Self) -> _Self:
        """Adds everything that another accumulator has seen, which is not used any more, and returns itself."""

    def to(self: _Self, device: torch.device) -> _Self:
        """An accumulator that has seen the same, with its tensors on `device`."""

    def finish(self) -> FinishedOut:
        """The finished statistics of everything seen so far."""


class EditMethod(Protocol[FinishedIn]):
    """How layer edits are made from statistics of demonstrations."""

    def needed_statistics(self, options: FitOptions) -> frozenset[Statistic]:
        """Which statistics a fit collects."""

    def statistics_options(self, options: FitOptions) -> FitOptions:
        """The options on which finished statistics depend, all others at their defaults.

        Statistics that were collected with the result serve every fit for which the result is equal.
        """

    def layer_edits(self, statistics: Mapping[Target, FinishedIn], options: FitOptions) -> dict[Target, LayerEdit]:
        """The edit of every target.

        Args:
            statistics: finished statistics of all edited targets.
            options: those of the fit. Options of the edit may differ from fit to fit with the same statistics.

        Raises:
            InputError: the options ask for an edit that these statistics do not have.
        """


class ActivationMethod(EditMethod[Finished], Protocol[Finished]):
    """A method whose statistics are of captured activations."""

    def accumulator(self, options: FitOptions) -> Accumulator[Finished]:
        """A new accumulator for one target."""


def edit_method(name: str) -> EditMethod[Any]:
    """The method of a name.

    Args:
        name: one of `sea_export.options.METHODS`.

    Raises:
        InputError: there is no such method.
    """
    check_choice("method", name, METHODS)
    method: EditMethod[Any] = importlib.import_module(METHODS[name]).METHOD
    return method


def activation_method(name: str) -> ActivationMethod[Any]:
    """The method of a name, if its statistics are of captured activations.

    Args:
        name: one of `sea_export.options.METHODS`.

    Raises:
        InputError: there is no such method, or its statistics are of gradients.
    """
    method = edit_method(name)
    if not hasattr(method, "accumulator"):
        raise InputError(f"--method: {name} needs gradients, which are not collected here. Choose another method.")
    return cast("ActivationMethod[Any]", method)


@contextmanager
def errors_of(target: Target) -> Iterator[None]:
    """Puts the name of a target in front of the message of every InputError that is raised inside."""
    try:
        yield
    except InputError as error:
        raise InputError(f"layer {target.layer}, {target.component}: {error}") from error
