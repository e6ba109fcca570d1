"""The edits that `benchmark_methods` compares, and the statistics that they are made from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from method_gradients import demonstration_gradients, label_signs
from method_results import digest

from sea_export.demonstrations.demonstration import Demonstration, demonstrations_digest
from sea_export.edit.spectral_edit import SpectralEdit
from sea_export.fitting.collect import collect_statistics
from sea_export.fitting.fit import edit_from_statistics
from sea_export.fitting.gradient import biased
from sea_export.fitting.layer_choice import choose_targets
from sea_export.fitting.natural_gradient import natural_biases
from sea_export.fitting.presets import PRESETS
from sea_export.model.targets import Target
from sea_export.options import CaptureOptions, EditOptions, FitOptions

GRADIENT_METHODS = ("gradient", "natural-gradient")
MIDDLE = "middle"
"""A third of the layers, in the middle of the model."""


@dataclass(frozen=True)
class Arm:
    """One edit, at any strength."""

    name: str
    options: FitOptions
    layers: str | None = None
    """`MIDDLE`, or what `options.layers` says if None."""
    random_direction: bool = False
    """Whether the constant of every layer is replaced by a random one of the same norm."""
    turned: bool = False
    """Whether the strength is negative."""
    in_spectral_subspace: bool = False
    """Whether the constant of every layer is projected onto the directions of the spectral edit there."""
    shuffled: int | None = None
    """The seed of a random half of the demonstrations, in which positive and negative completions change places."""

    def fit_options(self, layer_count: int) -> FitOptions:
        """The options for a model of so many layers."""
        if self.layers != MIDDLE:
            return self.options
        first = layer_count // 3
        return replace(self.options, layers=f"{first}-{2 * layer_count // 3 - 1}")


def _of_preset(name: str) -> FitOptions:
    """The options of a preset for the fit, without its strength."""

    def own(options: type[Any]) -> dict[str, Any]:
        names = {item.name for item in fields(options)} - {"strength"}
        return {option: value for option, value in PRESETS[name].items() if option in names}

    return FitOptions(
        **own(FitOptions), capture=CaptureOptions(**own(CaptureOptions)), edit=EditOptions(**own(EditOptions))
    )


_NATURAL = FitOptions(method="natural-gradient")
SHUFFLED = tuple(f"shuffled labels{f' {draw}' if draw > 1 else ''}" for draw in range(1, 9))
"""Several draws, because one random direction may help or harm by chance."""

ARMS = {
    arm.name: arm
    for arm in (
        Arm("spectral", FitOptions()),
        Arm(
            "spectral, published",
            FitOptions(center="off", edit=EditOptions(explained_variance=0.998, normalization="calibrated")),
        ),
        Arm("published preset", _of_preset("published-truthfulness")),
        Arm("gradient bias", FitOptions(method="gradient")),
        Arm("natural bias", _NATURAL),
        Arm("natural bias, linear center", replace(_NATURAL, center="linear")),
        Arm("natural linear", FitOptions(method="natural-gradient", form="linear")),
        Arm("natural low-rank 16", FitOptions(method="natural-gradient", form="low-rank", rank=16)),
        Arm("mean difference, last", FitOptions(method="mean-difference")),
        Arm("mean difference, mean", FitOptions(method="mean-difference", capture=CaptureOptions(position="mean"))),
        Arm("erasure", FitOptions(method="erasure")),
        Arm("natural bias, last 6", replace(_NATURAL, layers="last:6")),
        Arm("natural bias, middle", _NATURAL, layers=MIDDLE),
        Arm("natural bias, spectral subspace", _NATURAL, in_spectral_subspace=True),
        Arm("random direction", _NATURAL, random_direction=True),
        Arm("turned sign", _NATURAL, turned=True),
        *(Arm(name, _NATURAL, shuffled=seed) for seed, name in enumerate(SHUFFLED)),
    )
}
"""By name. From the random direction on they are controls."""


def arm_named(name: str) -> Arm:
    """The arm of a name, which may be written with hyphens: `natural-bias-last-6`."""
    wanted = _plain(name)
    found = [arm for arm in ARMS.values() if _plain(arm.name) == wanted]
    if not found:
        raise ValueError(f"{name!r} is no method. Choose some of {', '.join(_plain(one) for one in ARMS)}.")
    return found[0]


def _plain(name: str) -> str:
    return name.replace(",", "").replace(" ", "-")


class CollectedStatistics:
    """Statistics of one model and its demonstrations, collected when they are first asked for, and kept in a folder.

    Gradients for linear maps hold all that every gradient method and form needs, so that they are collected once.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        demonstrations: Sequence[Demonstration],
        identity: Mapping[str, Any],
        arms: Sequence[Arm],
        directory: Path,
    ) -> None:
        """Reads nothing yet.

        Args:
            model: the base.
            tokenizer: its tokenizer.
            demonstrations: those of the fit.
            identity: what tells the model and the demonstrations apart from others, as plain JSON data.
            arms: all arms whose statistics may be asked for: what they share is collected for all their layers.
            directory: where statistics are kept.
        """
        self._model, self._tokenizer, self._demonstrations = model, tokenizer, demonstrations
        self._identity, self._directory = dict(identity), directory
        self._layer_count = model.config.get_text_config().num_hidden_layers
        self._loaded: dict[str, Mapping[Target, Any]] = {}
        self._layers: dict[FitOptions, set[int]] = {}
        for arm in arms:
            layers = self._layers.setdefault(_collected_options(arm), set())
            layers.update(target.layer for target in self._targets(arm))

    def of(self, arm: Arm) -> dict[Target, Any]:
        """The statistics of the layers that an arm edits."""
        collected = self._collected(_collected_options(arm))
        own = {target: collected[target] for target in self._targets(arm)}
        if arm.shuffled is None:
            return own
        # Only the gradient of the margin depends on the labels.
        signs = label_signs(len(self._demonstrations), arm.shuffled)
        return {
            target: replace(own[target], gradient=signs @ gradients.double() / len(signs))
            for target, gradients in self.of_each(arm).items()
        }

    def of_each(self, arm: Arm, others: Sequence[Demonstration] | None = None) -> Mapping[Target, torch.Tensor]:
        """The gradients (demonstrations, d) of each demonstration's margin, at the targets of an arm.

        Args:
            arm: the arm.
            others: other demonstrations than those of the fit.
        """
        targets = self._targets(arm)
        key: dict[str, Any] = {"gradients of each": [str(one) for one in targets]}
        if others is not None:
            key["others"] = demonstrations_digest(others)
        demonstrations = self._demonstrations if others is None else others

        def collect() -> Mapping[Target, torch.Tensor]:
            options = arm.fit_options(self._layer_count)
            return demonstration_gradients(self._model, self._tokenizer, demonstrations, targets, options)

        return self._kept(key, collect)

    def _targets(self, arm: Arm) -> tuple[Target, ...]:
        return choose_targets(self._model, arm.fit_options(self._layer_count))

    def _collected(self, options: FitOptions) -> Mapping[Target, Any]:
        layers = sorted(self._layers[options])
        options = replace(options, layers=",".join(map(str, layers)))
        key = {"options": asdict(options)}
        return self._kept(key, lambda: collect_statistics(self._model, self._tokenizer, self._demonstrations, options))

    def _kept(self, own: Mapping[str, Any], collect: Callable[[], Mapping[Target, Any]]) -> Mapping[Target, Any]:
        key = digest({**self._identity, **own})[:16]
        if key in self._loaded:
            return self._loaded[key]
        file = self._directory / f"statistics-{key}.pt"
        if file.exists():
            found = torch.load(file, weights_only=False)
        else:
            found = collect()
            self._directory.mkdir(parents=True, exist_ok=True)
            partial = file.with_suffix(".partial")
            torch.save(found, partial)
            partial.rename(file)
        # Two, because a fit with shuffled labels needs both kinds. More would fill the memory.
        self._loaded = {**dict(list(self._loaded.items())[-1:]), key: found}
        return found


def _collected_options(arm: Arm) -> FitOptions:
    """The options with which the statistics of an arm are collected; the same for arms that share them."""
    options = arm.options
    if options.method in GRADIENT_METHODS:
        return FitOptions(method="natural-gradient", form="linear", template=options.template, capture=options.capture)
    if options.method in ("mean-difference", "erasure"):
        return FitOptions(method="mean-difference", template=options.template, capture=options.capture)
    center = options.center
    return FitOptions(method=options.method, center=center, template=options.template, capture=options.capture)


def edits_by_strength(
    arm: Arm, statistics: Mapping[Target, Any], layer_count: int, spectral: Mapping[Target, Any] | None = None
) -> Callable[[float], SpectralEdit]:
    """A function that makes the edit of an arm at a strength above 0.

    Args:
        arm: the arm.
        statistics: of the layers that it edits.
        layer_count: the number of layers of the model.
        spectral: the statistics of the spectral edit of the same layers, for an arm in its subspace.
    """
    options = arm.fit_options(layer_count)
    sign = -1.0 if arm.turned else 1.0
    if options.method == "spectral":
        return lambda strength: edit_from_statistics(
            statistics, replace(options, edit=replace(options.edit, strength=sign * strength))
        )
    if arm.random_direction:
        edits = {target: (one,) for target, one in biased(_random_biases(statistics), statistics, options).items()}
        unit = SpectralEdit(edits)
    elif spectral is not None:
        biases = _projected(natural_biases(statistics), edit_from_statistics(spectral, FitOptions()))
        unit = SpectralEdit({target: (one,) for target, one in biased(biases, statistics, options).items()})
    else:
        unit = edit_from_statistics(statistics, options)
    return lambda strength: unit.with_strength(sign * strength)


def _projected(biases: Mapping[Target, torch.Tensor], edit: SpectralEdit) -> dict[Target, torch.Tensor]:
    """The part of every constant that lies in the directions which a spectral edit keeps or drops."""
    found = {}
    for target, bias in biases.items():
        directions = torch.cat([factor for one in edit.layers[target] for factor in (one.positive, one.negative)], 1)
        basis, _ = torch.linalg.qr(directions.to(bias))
        found[target] = basis @ (basis.T @ bias)
    return found


def _random_biases(statistics: Mapping[Target, Any]) -> dict[Target, torch.Tensor]:
    """For every target a random constant as long as that of the natural gradient."""
    generator = torch.Generator().manual_seed(0)
    found = {}
    for target, bias in natural_biases(statistics).items():
        drawn = torch.randn(bias.shape, generator=generator, dtype=bias.dtype)
        found[target] = drawn * bias.norm() / drawn.norm()
    return found
