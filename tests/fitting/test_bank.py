"""The bank of statistics: its edits are those of a fit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from sea_export.demonstrations.demonstration import Demonstration
from sea_export.edit.spectral_edit import SpectralEdit
from sea_export.fitting.bank import StatisticsBank
from sea_export.fitting.fit import fit_any_strength
from sea_export.options import CENTERS, SITES, TARGETS, CaptureOptions, EditOptions, FitOptions

START = FitOptions(layers="last:2", edit=EditOptions(explained_variance=0.7))


@pytest.fixture(scope="module")
def bank(
    llama: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, demonstrations: tuple[Demonstration, ...]
) -> StatisticsBank:
    gradients = FitOptions(method="natural-gradient", form="linear")
    return StatisticsBank(llama, tokenizer, demonstrations, START, sites=SITES, targets=TARGETS, gradients=gradients)


def assert_equal_edits(one: SpectralEdit, other: SpectralEdit) -> None:
    assert one.targets == other.targets
    for target in one.targets:
        (a,), (b,) = one.layers[target], other.layers[target]
        numbers = b.numbers()
        for name, value in a.numbers().items():
            assert value == (pytest.approx(numbers[name], rel=1e-4) if isinstance(value, float) else numbers[name])
        probe = torch.randn(5, a.size, generator=torch.Generator().manual_seed(0))
        assert torch.allclose(a.apply(probe), b.apply(probe), atol=1e-4)


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("center", CENTERS)
def test_edits_from_the_bank_are_those_of_a_fit(
    site: str,
    target: str,
    center: str,
    bank: StatisticsBank,
    llama: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    demonstrations: tuple[Demonstration, ...],
) -> None:
    options = FitOptions(
        layers="signature:2" if site == "residual" else "1-2",
        target=target,
        center=center,
        capture=CaptureOptions(site=site),
        edit=EditOptions(positive_variance=0.6, negative_variance=0.8, strength=0.5, normalization="calibrated"),
    )
    expected = fit_any_strength(llama, tokenizer, demonstrations, options).edit()
    found = bank.fit(options).edit()
    assert_equal_edits(found, expected)
    assert found.provenance["options"] == expected.provenance["options"]
    assert found.provenance["demonstrations"] == expected.provenance["demonstrations"]


OTHER_METHODS = {
    "gradient": {"method": "gradient"},
    "gradient, read constant": {"method": "gradient", "center": "linear"},
    "gradient map": {"method": "gradient", "form": "linear"},
    "natural gradient": {"method": "natural-gradient", "damping": 5.0},
    "natural map": {"method": "natural-gradient", "form": "low-rank", "rank": 3},
    "mean difference": {"method": "mean-difference", "capture": CaptureOptions(site="residual")},
    "erasure": {"method": "erasure"},
}


@pytest.mark.parametrize("given", OTHER_METHODS.values(), ids=OTHER_METHODS)
def test_edits_of_every_method_are_those_of_a_fit(
    given: dict[str, Any],
    bank: StatisticsBank,
    llama: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    demonstrations: tuple[Demonstration, ...],
) -> None:
    """The bank has collected more: maps, neutral text, and all layers."""
    options = FitOptions(layers="1-2", target="both", edit=EditOptions(strength=0.3), **given)
    expected = fit_any_strength(llama, tokenizer, demonstrations, options).edit()
    assert_equal_edits(bank.fit(options).edit(), expected)
