"""Edits from gradients are the steps that their definitions say, and raise the margin that they were made for."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import sea_export
from sea_export.capture.batching import PromptedCompletions
from sea_export.capture.opened_model import OpenedModel
from sea_export.demonstrations.demonstration import Demonstration
from sea_export.demonstrations.tokenize import tokenize
from sea_export.errors import InputError
from sea_export.evaluation.scoring import completion_log_likelihoods
from sea_export.fitting.fit import edit_from_statistics, fit_any_strength
from sea_export.fitting.fit_base import fit_base
from sea_export.fitting.gradient_statistics import GradientStatistics
from sea_export.fitting.linear_edit import OutputMoments
from sea_export.fitting.natural_gradient import natural_biases, natural_map
from sea_export.model.base import open_base
from sea_export.model.targets import Target
from sea_export.options import FitOptions
from tests.helpers.messages import naming

GRADIENT_METHODS = ("gradient", "natural-gradient")
FORMS = ("bias", "linear", "low-rank")


def statistics(seed: int, size: int = 6, samples: int = 4) -> GradientStatistics:
    generator = torch.Generator().manual_seed(seed)

    def positive_definite() -> torch.Tensor:
        root = torch.randn(size, size, generator=generator, dtype=torch.float64)
        return root @ root.T

    outputs = torch.randn(2, 30, size, generator=generator, dtype=torch.float64)
    return GradientStatistics(
        gradient=torch.randn(size, generator=generator, dtype=torch.float64),
        map_gradient=torch.randn(size, size, generator=generator, dtype=torch.float64),
        samples=torch.randn(samples, size, generator=generator, dtype=torch.float64),
        curvature=positive_definite(),
        moments=OutputMoments(outputs.mT @ outputs, outputs.sum(1), torch.tensor([30.0, 30.0], dtype=torch.float64)),
    )


def test_natural_biases_solve_for_all_targets_together() -> None:
    several = {Target(1, "mlp"): statistics(1), Target(2, "mlp"): statistics(2)}
    found = natural_biases(several, damping=3.0)
    samples = torch.cat([one.samples for one in several.values()], dim=1)
    fisher = samples.T @ samples / len(samples)
    penalty = 3.0 * fisher.diagonal().mean()
    gradient = torch.cat([one.gradient for one in several.values()])
    expected = torch.linalg.solve(fisher + penalty * torch.eye(12, dtype=torch.float64), gradient)
    torch.testing.assert_close(torch.cat(list(found.values())), expected)
    assert list(found) == list(several)


def test_a_natural_map_solves_the_kronecker_product() -> None:
    one = statistics(3)
    eye = torch.eye(6, dtype=torch.float64)
    outer = one.curvature + 2.0 * one.curvature.diagonal().mean() * eye
    inner = one.moments.second_moment + 2.0 * one.moments.second_moment.diagonal().mean() * eye
    expected = torch.linalg.solve(torch.kron(outer, inner), one.map_gradient.flatten()).view(6, 6)
    torch.testing.assert_close(natural_map(one, damping=2.0), expected)


def margin(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, demonstrations) -> float:
    """The mean of log p(positive) / |positive| - log p(negative) / |negative|."""
    tokenized = tokenize(demonstrations, tokenizer)
    items = [PromptedCompletions(one.prompt, (one.positive, one.negative)) for one in tokenized]
    scores = completion_log_likelihoods(model, items)
    return sum(
        plus / len(one.positive) - minus / len(one.negative)
        for (plus, minus), one in zip(scores, tokenized, strict=True)
    ) / len(tokenized)


@pytest.mark.parametrize(("form", "usual"), [("bias", 10.0), ("linear", 1.0)])
def test_the_damping_is_an_option(form: str, usual: float, llama: PreTrainedModel, tokenizer, demonstrations) -> None:
    options = FitOptions(method="natural-gradient", form=form, layers="1-2")
    found = fit_any_strength(llama, tokenizer, demonstrations, options).statistics
    rows = torch.randn(5, 24)

    def edited(damping: float | None) -> torch.Tensor:
        edit = edit_from_statistics(found, replace(options, damping=damping))
        return edit.layers[Target(2, "mlp")][0].apply(rows)

    torch.testing.assert_close(edited(None), edited(usual))
    assert not torch.allclose(edited(None), edited(10 * usual), rtol=1e-2)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("method", GRADIENT_METHODS)
def test_a_small_step_raises_the_margin_and_its_opposite_lowers_it(
    method: str, form: str, llama: PreTrainedModel, tokenizer, demonstrations
) -> None:
    rank = {"rank": 3} if form == "low-rank" else {}
    edit = sea_export.fit(llama, tokenizer, demonstrations, method=method, form=form, layers="1-3", **rank)
    size = edit.relative_change
    before = margin(llama, tokenizer, demonstrations)
    changes = []
    for sign in (1, -1):
        small = sea_export.fit(
            llama,
            tokenizer,
            demonstrations,
            **{"method": method, "form": form, **rank, "layers": "1-3", "strength": sign * 0.02 / size},
        )
        with small.apply(llama):
            changes.append(margin(llama, tokenizer, demonstrations) - before)
    assert changes[0] > 1e-3
    assert changes[1] < -1e-3


def test_the_gradient_is_the_derivative_of_the_margin(llama: PreTrainedModel, tokenizer, demonstrations) -> None:
    edit = sea_export.fit(llama, tokenizer, demonstrations, method="gradient", layers="2")
    ((layer,),) = edit.layers.values()
    before = margin(llama, tokenizer, demonstrations)
    small = replace(edit, layers={Target(2, "mlp"): (replace(layer, shift=1e-2 * layer.shift),)})
    with small.apply(llama):
        gained = margin(llama, tokenizer, demonstrations) - before
    assert gained == pytest.approx(1e-2 * float(layer.shift @ layer.shift), rel=0.05)


@pytest.mark.parametrize("method", [*GRADIENT_METHODS, "mean-difference", "erasure"])
def test_the_strength_scales_the_change(method: str, llama: PreTrainedModel, tokenizer, demonstrations) -> None:
    one, half = (
        sea_export.fit(llama, tokenizer, demonstrations, method=method, layers="1,2", strength=strength)
        for strength in (1.0, 0.5)
    )
    rows = torch.randn(5, 24)
    for target in one.targets:
        whole = one.layers[target][0].apply(rows) - rows
        torch.testing.assert_close(2 * (half.layers[target][0].apply(rows) - rows), whole, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("method", GRADIENT_METHODS)
def test_a_constant_can_be_read_from_the_activation(method: str, llama: PreTrainedModel, tokenizer, demonstrations):
    given = {"method": method, "layers": "2"}
    bias = sea_export.fit(llama, tokenizer, demonstrations, **given)
    read = sea_export.fit(llama, tokenizer, demonstrations, **given, center="linear")
    (one,), (other,) = bias.layers[Target(2, "mlp")], read.layers[Target(2, "mlp")]
    assert one.needs_bias
    assert not other.needs_bias
    torch.testing.assert_close(one.shift, other.shift)
    assert other.reader_error < 0.9


def test_the_low_rank_form_is_the_nearest_map(llama: PreTrainedModel, tokenizer, demonstrations) -> None:
    given = {"method": "natural-gradient", "layers": "2"}
    whole = sea_export.fit(llama, tokenizer, demonstrations, **given, form="linear").layers[Target(2, "mlp")][0]
    low = sea_export.fit(llama, tokenizer, demonstrations, **given, form="low-rank", rank=5).layers[Target(2, "mlp")][0]
    change = whole.left.double() @ whole.right.double()
    u, s, v = torch.linalg.svd(change)
    expected = (u[:, :5] * s[:5]) @ v[:5]
    torch.testing.assert_close(low.left.double() @ low.right.double(), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "facts"),
    [
        ({"feature_function": "tanh"}, ("--feature-function", "gradient")),
        ({"sequential": True}, ("--sequential", "gradient")),
        ({"form": "linear", "center": "affine"}, ("--center", "linear")),
        ({"center": "off"}, ("--center", "off")),
        ({"method": "erasure", "form": "low-rank"}, ("--form", "erasure")),
        ({"method": "newton"}, ("--method", "newton")),
        ({"form": "round"}, ("--form", "round")),
        ({"method": "spectral", "form": "linear"}, ("--form", "spectral")),
        ({"form": "linear", "rank": 3}, ("--rank", "low-rank")),
        ({"damping": 3.0}, ("--damping", "natural-gradient")),
        ({"method": "natural-gradient", "damping": 0.0}, ("--damping", "0.0")),
        ({"method": "natural-gradient", "damping": float("nan")}, ("--damping", "nan")),
    ],
)
def test_what_a_method_does_not_have_is_refused(options: dict, facts: tuple[str, ...]) -> None:
    with pytest.raises(InputError, match=naming(*facts)):
        FitOptions(**{"method": "gradient", **options})


def test_gradients_go_through_weights_in_4_bits(
    quantized_checkpoint: Path,
    tokenizer: PreTrainedTokenizerFast,
    demonstrations: tuple[Demonstration, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The edit of a quantized base is near that of the base in full precision."""
    # On processors with units for bfloat16 bitsandbytes computes in it, and not in float32 as elsewhere.
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: False)
    options = FitOptions(method="gradient", layers="last:2")
    with open_base(str(quantized_checkpoint)) as base, open_base(str(quantized_checkpoint), dequantize=True) as plain:
        edits = [
            fit_any_strength(one.load_model(dtype=torch.float32), tokenizer, demonstrations, options).edit()
            for one in (base, plain)
        ]
    for target in edits[0].targets:
        (quantized,), (full,) = (edit.layers[target] for edit in edits)
        assert quantized.shift is not None
        assert full.shift is not None
        assert quantized.shift.norm() > 0
        torch.testing.assert_close(quantized.shift, full.shift, rtol=0.05, atol=0.05 * float(full.shift.norm()))


@pytest.mark.parametrize(("dtype", "expected"), [(None, torch.float32), (torch.bfloat16, torch.bfloat16)])
def test_gradients_of_a_base_in_half_precision_are_computed_in_float32(
    dtype: torch.dtype | None,
    expected: torch.dtype,
    llama: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    demonstrations: tuple[Demonstration, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sea_export.model.compute_dtype.float32_is_faster", lambda dtype: False)
    copy.deepcopy(llama).to(torch.bfloat16).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    seen: set[torch.dtype] = set()
    with open_base(str(tmp_path / "base")) as base:
        opened = OpenedModel(base, dtype, "cpu", None, False, scratch=tmp_path)
        layer = opened.whole_model.get_submodule("model.layers.3")
        with layer.register_forward_hook(lambda module, inputs, output: seen.add(inputs[0].dtype)):
            fit_base(opened, demonstrations, FitOptions(method="gradient"))
        assert opened.whole_model.dtype == torch.bfloat16
    assert seen == {expected}
