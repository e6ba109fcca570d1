"""Numbers at their limits: every edit is finite and what its definition says, or is refused."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

import sea_export
from sea_export.capture.activations import Activations
from sea_export.demonstrations.demonstration import Demonstration
from sea_export.edit.features import FeatureFunction
from sea_export.edit.layer_edit import LayerEdit
from sea_export.edit.spectral_edit import SpectralEdit
from sea_export.edit.summary import no_op_warning
from sea_export.errors import InputError, SeaExportError
from sea_export.fitting.spectrum import SpectrumFitter
from sea_export.fitting.truncate import build_layer_edit
from sea_export.options import CENTERS, FEATURE_FUNCTIONS, NORMALIZATIONS, PROJECTIONS, EditOptions
from tests.helpers.messages import naming
from tests.helpers.reference import dense_edit, dense_of
from tests.helpers.tiny_models import tiny_config, tiny_model

GUARANTEE = "Whatever the activations are, an edit is finite and as defined, or refused in one sentence"
SETTINGS = settings(
    derandomize=True, database=None, deadline=None, max_examples=400, suppress_health_check=list(HealthCheck)
)

KINDS: dict[str, Callable[[torch.Generator, int, int], torch.Tensor]] = {
    "zero": lambda generator, count, size: torch.zeros(3, count, size),
    "constant": lambda generator, count, size: torch.randn(3, 1, size, generator=generator).expand(3, count, size),
    "one kind constant": lambda generator, count, size: torch.cat(
        [torch.ones(1, count, size), torch.randn(2, count, size, generator=generator)]
    ),
    "rank 1": lambda generator, count, size: (
        torch.randn(3, count, 1, generator=generator) * torch.randn(1, 1, size, generator=generator)
    ),
    "equal": lambda generator, count, size: torch.randn(1, count, size, generator=generator).expand(3, count, size),
    "zero features": lambda generator, count, size: (
        torch.randn(3, count, size, generator=generator) * (torch.arange(size) % 2)
    ),
    "one demonstration counts": lambda generator, count, size: (
        torch.randn(3, count, size, generator=generator) * (torch.arange(count) == 0)[:, None]
    ),
    "full": lambda generator, count, size: torch.randn(3, count, size, generator=generator) + 1,
    "unequal features": lambda generator, count, size: (
        torch.randn(3, count, size, generator=generator) * 10.0 ** -torch.arange(size, dtype=torch.float32)
    ),
}


def edit_of(rows: torch.Tensor, center: str, options: EditOptions, feature: FeatureFunction) -> LayerEdit:
    fitter = SpectrumFitter(center, feature)
    for batch in rows.split(3, dim=1):
        fitter.update(Activations(*batch))
    return build_layer_edit(fitter.finish(), options)


def assert_finite(edit: LayerEdit) -> None:
    for name, tensor in edit.tensors().items():
        assert tensor.isfinite().all(), name
    for name, number in edit.numbers().items():
        assert not isinstance(number, float) or math.isfinite(number), name
    for factor in (edit.positive, edit.negative):
        torch.testing.assert_close(factor.T @ factor, torch.eye(factor.shape[1]), rtol=0, atol=1e-5)
    assert math.isfinite(edit.first_share)


@pytest.mark.slow
@pytest.mark.guarantee(GUARANTEE)
@given(
    kind=st.sampled_from(sorted(KINDS)),
    count=st.integers(2, 12),
    size=st.sampled_from([1, 2, 5, 8]),
    magnitude=st.integers(-15, 15),
    center=st.sampled_from(CENTERS),
    feature=st.sampled_from(FEATURE_FUNCTIONS),
    projections=st.sampled_from(PROJECTIONS),
    normalization=st.sampled_from(NORMALIZATIONS),
    strength=st.sampled_from([0.0, 0.5, 1.0, 2.0, -1.0]),
    variance=st.sampled_from([0.5, 0.99, 1.0]),
    seed=st.integers(0, 3),
)
@SETTINGS
def test_edits_are_finite_and_as_defined(
    kind: str,
    count: int,
    size: int,
    magnitude: int,
    center: str,
    feature: str,
    projections: str,
    normalization: str,
    strength: float,
    variance: float,
    seed: int,
    count_case: Callable[[], None],
) -> None:
    count_case()
    center = center if feature == "identity" else "off"
    rows = KINDS[kind](torch.Generator().manual_seed(seed), count, size) * 10.0**magnitude
    options = EditOptions(
        explained_variance=variance, projections=projections, normalization=normalization, strength=strength
    )
    edit = edit_of(rows, center, options, FeatureFunction(feature))
    assert_finite(edit)
    probe = torch.cat([rows.flatten(0, 1), torch.zeros(1, size), 10.0**magnitude * torch.ones(1, size)])
    edited = edit.apply(probe)
    assert edited.isfinite().all()
    if feature == "identity" and edit.scale is None and center != "linear":
        expected = dense_of(edit)(probe).float()
        torch.testing.assert_close(edited, expected, rtol=1e-3, atol=1e-3 * float(probe.abs().max()) + 1e-30)
    if strength == 0 and feature == "identity":
        torch.testing.assert_close(edited, probe, rtol=1e-4, atol=1e-4 * float(probe.abs().max()))
    for dtype in (torch.bfloat16, torch.float16):
        narrow = probe.to(dtype)
        if narrow.isfinite().all() and edited.abs().max() < 1e4:
            assert edit.apply(narrow).isfinite().all()


@pytest.mark.guarantee(GUARANTEE)
@pytest.mark.parametrize("center", CENTERS)
@pytest.mark.parametrize("count", [2, 3, 30], ids=["n=2", "n=3", "n>d"])
def test_activations_of_low_rank_have_the_edit_of_the_definition(
    count: int, center: str, count_case: Callable[[], None]
) -> None:
    """Also where Ω has fewer directions than either n or d."""
    generator = torch.Generator().manual_seed(5)
    for rank, normalization in itertools.product((1, 2, 8), ("none", "average", "calibrated")):
        count_case()
        directions = torch.randn(rank, 8, generator=generator, dtype=torch.float64)
        rows = torch.randn(3, count, rank, generator=generator, dtype=torch.float64) @ directions + 1
        activations = Activations(*rows)
        options = EditOptions(explained_variance=0.999, normalization=normalization)
        edit = edit_of(rows, center, options, FeatureFunction())
        assert edit.positive_values.numel() <= min(rank + 1, count, 8)
        if center != "linear":
            expected = dense_edit(activations, center, options)(rows[1])
            torch.testing.assert_close(edit.apply(rows[1]), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.guarantee(GUARANTEE)
def test_constant_activations_have_nothing_to_tell_apart(count_case: Callable[[], None]) -> None:
    for center, normalization in itertools.product(("affine", "linear"), ("none", "calibrated", "token")):
        count_case()
        rows = torch.tensor([1.0, -2.0, 3.0, 0.0]).expand(3, 6, 4)
        edit = edit_of(rows, center, EditOptions(normalization=normalization), FeatureFunction())
        assert (edit.positive.shape[1], edit.negative.shape[1], edit.relative_change) == (0, 0, 0.0)
        torch.testing.assert_close(edit.apply(rows[0]), rows[0])
        warning = no_op_warning([edit.summary(sea_export.model.targets.Target(0, "mlp"))])
        assert warning is not None
        assert "--explained-variance" not in warning, "there is nothing that a higher one could explain"


@pytest.mark.guarantee(GUARANTEE)
def test_what_float32_does_not_hold_is_refused(count_case: Callable[[], None]) -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(3, 6, 8, generator=generator) + 1
    for large, options in (
        (rows * 1e25, EditOptions()),
        (rows, EditOptions(strength=-1000.0, normalization="average")),
    ):
        count_case()
        for center in CENTERS:
            with pytest.raises(InputError, match=naming("float32")):
                edit_of(large, center, options, FeatureFunction())
    count_case()
    with pytest.raises(InputError, match=naming("--strength")):
        EditOptions(strength=1e39)


@pytest.mark.guarantee(GUARANTEE)
@pytest.mark.parametrize("feature", FEATURE_FUNCTIONS)
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_strength_0_edits_nothing(feature: str, normalization: str) -> None:
    rows = torch.randn(3, 9, 8, generator=torch.Generator().manual_seed(1)) + 0.5
    for center in CENTERS if feature == "identity" else ("off",):
        options = EditOptions(strength=0.0, normalization=normalization)
        edit = edit_of(rows, center, options, FeatureFunction(feature))
        torch.testing.assert_close(edit.apply(rows[1]), rows[1])
        assert edit.relative_change == pytest.approx(0, abs=1e-7)


def test_average_halves_at_strength_1() -> None:
    rows = torch.randn(3, 9, 8, generator=torch.Generator().manual_seed(1)) + 0.5
    plain, average = (
        edit_of(rows, "off", EditOptions(normalization=normalization), FeatureFunction())
        for normalization in ("none", "average")
    )
    torch.testing.assert_close(average.apply(rows[0]), plain.apply(rows[0]) / 2)


# Models


@pytest.fixture(scope="module")
def overflowing() -> PreTrainedModel:
    """A model whose last MLP writes numbers that float16 does not hold."""
    model = AutoModelForCausalLM.from_config(tiny_config("llama"), dtype=torch.float32).eval()
    model.load_state_dict(tiny_model("llama").state_dict())
    with torch.no_grad():
        model.model.layers[3].mlp.down_proj.weight *= 1e6
    return model


@pytest.mark.guarantee(GUARANTEE)
def test_a_model_that_overflows_is_refused_by_name(
    overflowing: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    demonstrations: tuple[Demonstration, ...],
    count_case: Callable[[], None],
) -> None:
    count_case()
    edit = sea_export.fit(overflowing, tokenizer, demonstrations, layers="last:1")
    assert_finite(next(iter(edit.layers.values()))[0])
    for dtype, scale in ((torch.float16, 1.0), (torch.bfloat16, 1e36)):
        count_case()
        model = AutoModelForCausalLM.from_config(tiny_config("llama"), dtype=torch.float32).eval()
        model.load_state_dict(overflowing.state_dict())
        with torch.no_grad():
            model.model.layers[3].mlp.down_proj.weight *= scale
        with pytest.raises(InputError, match=naming("layer 3, mlp", "float32")):
            sea_export.fit(model.to(dtype), tokenizer, demonstrations, layers="last:1")


@pytest.mark.guarantee(GUARANTEE)
def test_a_layer_of_zeros_is_left_as_it_is(
    tokenizer: PreTrainedTokenizerFast, demonstrations: tuple[Demonstration, ...], count_case: Callable[[], None]
) -> None:
    model = AutoModelForCausalLM.from_config(tiny_config("llama"), dtype=torch.float32).eval()
    model.load_state_dict(tiny_model("llama").state_dict())
    with torch.no_grad():
        model.model.layers[2].mlp.down_proj.weight.zero_()
    for center, normalization in itertools.product(CENTERS, ("none", "calibrated", "token")):
        count_case()
        edit = sea_export.fit(
            model, tokenizer, demonstrations, layers="last:2", center=center, normalization=normalization
        )
        zeros, others = (layers[0] for layers in edit.layers.values())
        assert_finite(zeros)
        assert (zeros.positive.shape[1], zeros.relative_change) == (0, 0.0)
        assert others.relative_change > 0
        tokens = torch.tensor([[3, 4, 5]])
        with edit.apply(model), torch.no_grad():
            assert model(tokens).logits.isfinite().all()


@pytest.mark.guarantee(GUARANTEE)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_weights_that_a_dtype_cannot_hold_are_not_written(
    dtype: torch.dtype,
    fit_tiny: Callable[..., SpectralEdit],
    tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
) -> None:
    """And without verification, too. In float32 the same edit is written."""
    edit = fit_tiny(tiny_model("llama"), layers="last:2")
    factor = 1e6 if dtype == torch.float16 else 1e38
    edit = replace(
        edit,
        layers={
            target: (replace(layer, scale=torch.full((layer.size,), factor), shift=None, reader=None),)
            for target, (layer,) in edit.layers.items()
        },
    )
    model = AutoModelForCausalLM.from_config(tiny_config("llama"), dtype=torch.float32)
    model.load_state_dict(tiny_model("llama").state_dict())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= 20
    model.to(dtype).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    with pytest.raises(
        SeaExportError, match=r"layers\.\d\.mlp\.down_proj\.weight\b.*" + str(dtype).removeprefix("torch.")
    ):
        sea_export.save(edit, tmp_path / "base", tmp_path / "out", force=True, verify=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base"]
