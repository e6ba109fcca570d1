"""A processor without native half precision gives what one with it gives, and in time."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from sea_export.model import precision
from sea_export.model.precision import products_in_float32

TOKENS = torch.tensor([[5, 40, 7, 9], [8, 3, 2, 30]])


@pytest.fixture(autouse=True)
def no_native_half_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "float32_is_faster", lambda dtype: True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("inference", [True, False])
def test_products_are_rounded_once(dtype: torch.dtype, inference: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    a, b, bias = (torch.randn(*size, generator=generator).to(dtype) for size in ((6, 300), (300, 5), (5,)))
    products = {
        "linear": (lambda a, b, bias: nn.functional.linear(a, b.T, bias)),
        "matmul": (lambda a, b, bias: a @ b),
        "bmm": (lambda a, b, bias: torch.bmm(a[None], b[None])),
        "addmm": (lambda a, b, bias: torch.addmm(bias, a, b)),
    }
    for name, product in products.items():
        with torch.inference_mode(inference), products_in_float32(dtype):
            found = product(a, b, bias)
        assert found.dtype == dtype, name
        assert torch.equal(found, product(a.float(), b.float(), bias.float()).to(dtype)), name


def test_everything_else_is_computed_as_it_is() -> None:
    rows = torch.randn(4, 8).to(torch.bfloat16)
    with products_in_float32(torch.bfloat16):
        assert torch.equal(rows.float() @ rows.float().T, (rows.float() @ rows.float().T))
        assert torch.equal(rows.exp(), rows.float().exp().to(torch.bfloat16))
        assert (rows.double() @ rows.double().T).dtype == torch.float64


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_in_half_precision_gives_what_it_gives(dtype: torch.dtype, llama: PreTrainedModel) -> None:
    model = copy.deepcopy(llama).to(dtype)
    with torch.inference_mode():
        native, whole = model(TOKENS).logits.float(), llama(TOKENS).logits
        with products_in_float32(dtype):
            found = model(TOKENS).logits.float()
    rounding = (native - whole).norm()
    assert rounding > 0
    assert (found - native).norm() < rounding
    assert 0.5 * rounding < (found - whole).norm() < 2 * rounding


def test_a_fast_processor_computes_natively(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "float32_is_faster", lambda dtype: False)
    monkeypatch.delattr(precision, "_ProductsInFloat32")
    with products_in_float32(torch.bfloat16):
        pass
    with products_in_float32(torch.float32):
        pass
