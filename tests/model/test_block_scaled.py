"""Numbers of few bits with factors of blocks: read as transformers reads them, and stored again without a change."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from transformers.integrations.finegrained_fp8 import Fp8Dequantize, Fp8Quantize
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from sea_export.model.block_scaled import BlockScaled, block_scaled_matrices
from tests.helpers.quantized_models import in_mxfp4

E2M1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6], dtype=torch.float64)


def weights(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def in_fp8(weight: torch.Tensor, scales: str) -> tuple[torch.Tensor, torch.Tensor]:
    settings = SimpleNamespace(
        weight_block_size=None if scales == "one" else (32, 16), scale_fmt="ue8m0" if scales == "bytes" else "float"
    )
    quantize = Fp8Quantize(SimpleNamespace(quantization_config=settings))
    stored = quantize.convert({"w.weight": weight})
    factors = stored["w.weight_scale_inv"]
    if scales == "bytes":
        factors = factors.view(torch.uint8)
    elif scales == "float16":
        factors = factors.half()
    return stored["w.weight"], factors.reshape(()) if scales == "one" else factors


FP8 = ("float32", "float16", "bytes", "one")


@pytest.mark.parametrize("scales", FP8)
def test_fp8_is_read_as_transformers_reads_it(scales: str) -> None:
    values, factors = in_fp8(weights(64, 48), scales)
    expected = Fp8Dequantize(None)._dequantize_one(values, factors, torch.float32)
    (matrix,) = block_scaled_matrices(values, factors)
    assert torch.equal(matrix.weights().float(), expected)
    assert torch.equal(matrix[32:64].float(), expected[32:]) or scales == "one"


def test_mxfp4_is_read_as_transformers_reads_it() -> None:
    generator = torch.Generator().manual_seed(0)
    blocks = torch.randint(0, 256, (3, 8, 2, 16), dtype=torch.uint8, generator=generator)
    exponents = torch.randint(100, 140, (3, 8, 2), dtype=torch.uint8, generator=generator)
    expected = convert_moe_packed_tensors(blocks, exponents, dtype=torch.float32)
    read = torch.stack([matrix.weights() for matrix in block_scaled_matrices(blocks, exponents)])
    assert torch.equal(read.mT.float(), expected)


def same(one: BlockScaled, other: BlockScaled) -> bool:
    pairs = ((one.values, other.values), (one.scales, other.scales))
    return all(torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8)) for a, b in pairs)


@pytest.mark.parametrize("scales", [*FP8, "mxfp4"])
@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("larger", [0, 3], ids=["filled", "not filled"])
def test_to_requantize_what_is_stored_changes_nothing(scales: str, zeros: bool, larger: int) -> None:
    """Also with blocks of zeros, and with factors so large that a block uses only a part of its range."""
    weight = weights(64, 96) * 10.0 ** weights(64, 96, seed=1)  # of many sizes
    if zeros:
        weight[:32, :32] = 0
        weight[40] = -0.0
    values, factors = in_mxfp4(weight) if scales == "mxfp4" else in_fp8(weight, scales)
    factors = factors + larger if factors.dtype == torch.uint8 else factors * 2**larger
    for matrix in block_scaled_matrices(values, factors):
        again = matrix.weights()
        assert same(matrix.quantized(again, matrix.next_scales(again)), matrix)


@pytest.mark.parametrize("scales", [*FP8, "mxfp4"])
@pytest.mark.parametrize("times", [0.01, 0.7, 1.9, 300.0])
def test_new_weights_are_rounded_to_the_nearest_number(scales: str, times: float) -> None:
    weight = weights(64, 96)
    values, factors = in_mxfp4(weight) if scales == "mxfp4" else in_fp8(weight, scales)
    new = times * weights(64, 96, seed=2).double() + weight
    numbers = torch.cat([E2M1, -E2M1]) if scales == "mxfp4" else torch.arange(256).to(torch.uint8)
    if scales != "mxfp4":
        numbers = numbers.view(torch.float8_e4m3fn).double()
        numbers = numbers[numbers.isfinite()]
    (matrix,) = block_scaled_matrices(values, factors)
    stored = matrix.quantized(new, matrix.next_scales(new))
    blocks = stored.factors()
    spread = blocks.repeat_interleave(64 // blocks.shape[0], 0).repeat_interleave(96 // blocks.shape[1], 1)
    nearest = ((new / spread)[..., None] - numbers).abs().amin(-1) * spread
    torch.testing.assert_close((stored.weights() - new).abs(), nearest, rtol=1e-6, atol=1e-9)
    assert stored.numbers().abs().amax() >= (3 if scales == "mxfp4" else 200), "the range of the numbers is used"


def test_ties_go_to_the_even_number() -> None:
    middles = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, -0.25, -0.75, -2.5, -5.0], dtype=torch.float64)
    row = torch.zeros(1, 32, dtype=torch.float64)
    row[0, : len(middles)], row[0, 31] = middles, 6
    matrix = BlockScaled(torch.zeros(1, 1, 16, dtype=torch.uint8), torch.full((1, 1), 127, dtype=torch.uint8))
    found = matrix.quantized(row, matrix.scales).weights()[0, : len(middles)]
    assert found.tolist() == [0, 1, 1, 2, 2, 4, 4, 0, -1, -2, -4]


@pytest.mark.parametrize("scales", ["float32", "bytes", "mxfp4"])
def test_what_the_base_may_have_been_rounded_by_is_half_of_the_spacing(scales: str) -> None:
    weight = weights(64, 96)
    values, factors = in_mxfp4(weight) if scales == "mxfp4" else in_fp8(weight, scales)
    (matrix,) = block_scaled_matrices(values, factors)
    error = (matrix.weights() - weight).abs()
    assert (error <= matrix.half_spacing() * (1 + 1e-5)).all()
    estimate = (matrix.half_spacing().square().sum() / 3).sqrt()
    assert float(estimate / error.norm()) == pytest.approx(1, abs=0.15)
