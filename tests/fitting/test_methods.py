"""Whatever fits an edit knows its method only by the protocol."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import sea_export
from sea_export.capture.activations import Activations
from sea_export.capture.in_memory import capture
from sea_export.demonstrations.demonstration import Demonstration
from sea_export.demonstrations.tokenize import tokenize
from sea_export.edit.layer_edit import LayerEdit
from sea_export.fitting import spectral
from sea_export.fitting.activation_statistics import Statistic
from sea_export.fitting.bank import StatisticsBank
from sea_export.fitting.distributed import ALONE
from sea_export.fitting.edit_method import ActivationMethod, activation_method
from sea_export.fitting.fit import fit_any_strength
from sea_export.model.targets import Target
from sea_export.options import CENTERS, EditOptions, FitOptions
from tests.helpers.reference import random_activations

TARGETS = (Target(1, "mlp"), Target(3, "mlp"))


class Means:
    """The accumulator and the finished statistics of the method below, which has nothing in common with spectra."""

    def __init__(self) -> None:
        self.count, self.sums = 0, torch.zeros(2, 1, dtype=torch.float64)

    def update(self, activations: Activations) -> Means:
        kinds = torch.stack([activations.positive, activations.negative]).double().cpu()
        self.count, self.sums = self.count + kinds.shape[1], self.sums + kinds.sum(dim=1)
        return self

    def merge(self, other: Means) -> Means:
        self.count, self.sums = self.count + other.count, self.sums + other.sums
        return self

    def to(self, device: torch.device) -> Means:
        return self

    def finish(self) -> Means:
        return self

    @property
    def signature(self) -> float:
        return float(self.difference().norm())

    def difference(self) -> Tensor:
        positive, negative = self.sums / self.count
        return positive - negative


@dataclass(frozen=True)
class MeanDifference:
    """Moves activations from the mean negative to the mean positive one. It solves for all targets at once."""

    def needed_statistics(self, options: FitOptions) -> frozenset[Statistic]:
        return frozenset({Statistic.MOMENTS})

    def accumulator(self, options: FitOptions) -> Means:
        return Means()

    def statistics_options(self, options: FitOptions) -> FitOptions:
        return FitOptions(template=options.template, capture=options.capture)

    def layer_edits(self, statistics: Mapping[Target, Means], options: FitOptions) -> dict[Target, LayerEdit]:
        return {target: shifted_by(options.edit.strength * one.difference()) for target, one in statistics.items()}


def shifted_by(shift: Tensor) -> LayerEdit:
    empty, none = torch.zeros(len(shift), 0), torch.zeros(0)
    return LayerEdit(empty, empty, 1.0, 1.0, None, shift.float(), None, none, none, 1.0, float(shift.norm()), None)


@pytest.fixture
def mean_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    method: ActivationMethod[Means] = MeanDifference()
    monkeypatch.setattr(spectral, "METHOD", method)


@pytest.fixture(scope="module")
def expected(
    llama: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, demonstrations: tuple[Demonstration, ...]
) -> dict[Target, Tensor]:
    captured = capture(llama, tokenize(demonstrations, tokenizer), TARGETS)
    return {target: (one.positive - one.negative).mean(dim=0) for target, one in captured.items()}


@pytest.mark.usefixtures("mean_difference")
@pytest.mark.parametrize("cached", [False, True], ids=["", "cache"])
@pytest.mark.parametrize("layerwise", [False, True], ids=["in memory", "layer by layer"])
def test_another_method_is_fitted_by_every_way_of_capture(
    cached: bool, layerwise: bool, llama, tokenizer, demonstrations, tiny_checkpoint, expected, tmp_path: Path
):
    options: dict[str, Any] = {"layers": "1,3", "strength": 0.5, "batch_tokens": 50}
    if cached:
        options["cache"] = tmp_path
    if layerwise:
        with sea_export.open_layerwise(tiny_checkpoint) as source:
            edit = sea_export.fit(source, tokenizer, demonstrations, **options)
    else:
        edit = sea_export.fit(llama, tokenizer, demonstrations, **options)
    assert edit.targets == TARGETS
    for target, difference in expected.items():
        torch.testing.assert_close(edit.layers[target][0].shift, 0.5 * difference, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("mean_difference")
def test_another_method_is_fitted_one_target_after_the_other(llama, tokenizer, demonstrations, expected):
    edit = sea_export.fit(llama, tokenizer, demonstrations, layers="1,3", sequential=True)
    torch.testing.assert_close(edit.layers[TARGETS[0]][0].shift, expected[TARGETS[0]], rtol=1e-4, atol=1e-5)
    later = edit.layers[TARGETS[1]][0].shift
    assert not torch.allclose(later, expected[TARGETS[1]], rtol=1e-3, atol=1e-4), "it is read with the earlier edit"


@pytest.mark.usefixtures("mean_difference")
def test_layers_are_ranked_by_the_signature_of_the_method(llama, tokenizer, demonstrations):
    every = sea_export.fit(llama, tokenizer, demonstrations, layers="all")
    norms = {target: edits[0].signature for target, edits in every.layers.items()}
    chosen = sea_export.fit(llama, tokenizer, demonstrations, layers="signature:1")
    assert chosen.targets == (max(norms, key=lambda target: norms[target]),)


@pytest.mark.usefixtures("mean_difference")
def test_a_bank_makes_edits_of_another_method(llama, tokenizer, demonstrations):
    options = FitOptions(layers="1,3", target="both", edit=EditOptions(strength=0.5))
    bank = StatisticsBank(llama, tokenizer, demonstrations, options, sites=("target",), targets=("both",))
    found, fitted = bank.fit(options).edit(), fit_any_strength(llama, tokenizer, demonstrations, options).edit()
    assert found.targets == fitted.targets
    for target, (edit,) in fitted.layers.items():
        torch.testing.assert_close(found.layers[target][0].shift, edit.shift)


def test_processes_finish_the_accumulator_of_any_method():
    activations = random_activations(10, 12)
    assert ALONE.finish(Means().update(activations)).count == 10


# The spectral method


def test_statistics_are_shared_by_all_fits_that_differ_in_the_edit_alone():
    method = activation_method("spectral")
    options = FitOptions(layers="last:2", target="mlp", center="linear")
    others = (
        replace(options, layers="all", target="both"),
        replace(options, edit=EditOptions(positive_rank=3, strength=0.5, normalization="calibrated")),
        replace(options, center="affine"),
    )
    shared = method.statistics_options(options)
    assert all(method.statistics_options(one) == shared for one in others)
    for other in (
        replace(options, center="off"),
        replace(options, template="none"),
        replace(options, capture=replace(options.capture, site="residual")),
        replace(options, center="off", feature_function="tanh"),
    ):
        assert method.statistics_options(other) != shared


@pytest.mark.parametrize("center", CENTERS)
def test_the_spectral_method_says_which_statistics_it_collects(center):
    method = activation_method("spectral")
    options = FitOptions(center=center)
    needed = method.needed_statistics(options)
    assert needed == method.accumulator(options).needs
    assert Statistic.CROSS_MOMENTS in needed
    assert (Statistic.MOMENTS in needed) == (center == "linear")
    assert Statistic.SAMPLES not in needed
    assert Statistic.SAMPLES in method.needed_statistics(FitOptions(center="off", feature_function="tanh"))


def test_an_affine_edit_of_statistics_for_linear_ones_has_no_reader():
    method = activation_method("spectral")
    linear, affine = (FitOptions(center=center) for center in ("linear", "affine"))
    activations = random_activations(40, 12)
    shared, own = (method.accumulator(one).update(activations).finish() for one in (linear, affine))
    edit = method.layer_edits({TARGETS[0]: shared}, affine)[TARGETS[0]]
    expected = method.layer_edits({TARGETS[0]: own}, affine)[TARGETS[0]]
    assert edit.reader is None
    assert edit.reader_error is None
    torch.testing.assert_close(edit.shift, expected.shift, rtol=1e-4, atol=1e-6)
