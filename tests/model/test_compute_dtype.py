"""What is computed in, where nobody says it: float32 on a CPU that is faster in it, and otherwise as stored."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from sea_export.capture.opened_model import OpenedModel
from sea_export.cli.opening import opened_model
from sea_export.demonstrations.demonstration import Demonstration
from sea_export.demonstrations.demonstration_options import DemonstrationOptions
from sea_export.doctor.diagnose import diagnose
from sea_export.evaluation.loaded_model import open_loaded_model
from sea_export.fitting.fit_base import fit_base
from sea_export.model import compute_dtype as module
from sea_export.model.base import open_base
from sea_export.model.compute_dtype import compute_dtype, float32_is_faster
from sea_export.model.location import locate_model
from sea_export.model.run_options import RunOptions
from sea_export.options import FitOptions

CPU = torch.device("cpu")


@pytest.fixture
def half_precision(llama: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> Path:
    """A base in bfloat16."""
    copy.deepcopy(llama).to(torch.bfloat16).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


@pytest.mark.parametrize("faster", [True, False])
@pytest.mark.parametrize("layerwise", [True, False])
def test_a_fit_and_an_evaluation_use_what_is_faster(
    faster: bool, layerwise: bool, half_precision: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "float32_is_faster", lambda dtype: faster)
    expected = torch.float32 if faster else torch.bfloat16
    with opened_model(locate_model(str(half_precision)), RunOptions(layerwise=layerwise), tmp_path / "out") as opened:
        assert opened.model.dtype == expected
    with open_loaded_model(str(half_precision), RunOptions()) as loaded:
        assert loaded.model.dtype == expected
    found = diagnose(
        str(half_precision), tmp_path / "out", DemonstrationOptions(limit=4), FitOptions(), RunOptions()
    ).model
    assert found is not None
    reason = "the fastest on this processor" if faster else "as stored"
    assert (found.dtype, found.dtype_reason) == (str(expected).removeprefix("torch."), reason)


def test_what_is_asked_for_is_used(half_precision: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "float32_is_faster", lambda dtype: True)
    with opened_model(locate_model(str(half_precision)), RunOptions(dtype="bfloat16"), tmp_path / "out") as opened:
        assert opened.model.dtype == torch.bfloat16


def test_a_fit_in_float32_by_choice_is_the_one_that_was_asked_for(
    half_precision: Path, demonstrations: tuple[Demonstration, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "float32_is_faster", lambda dtype: True)
    edits = []
    with open_base(str(half_precision)) as base:
        for dtype in (None, torch.float32):
            opened = OpenedModel(base, dtype, "cpu", None, False, scratch=tmp_path)
            edits.append(fit_base(opened, demonstrations, FitOptions()).edit())
    chosen, given = edits
    assert chosen.provenance["computation"]["dtype"] == "float32"
    states = torch.randn(8, 24)
    for target in given.targets:
        for one, other in zip(chosen.layers[target], given.layers[target], strict=True):
            assert torch.equal(one.apply(states), other.apply(states))


def test_a_base_stays_as_stored_where_float32_does_not_fit(
    half_precision: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "float32_is_faster", lambda dtype: True)
    with open_base(str(half_precision)) as base:
        assert compute_dtype(base, CPU) == torch.float32
        assert compute_dtype(base, torch.device("meta")) is None
        monkeypatch.setattr(module, "fits", lambda weights, device: False)
        assert compute_dtype(base, CPU) is None


def test_a_base_in_float32_and_a_quantized_one_stay_as_they_are(
    half_precision: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "float32_is_faster", lambda dtype: True)
    with open_base(str(tiny_checkpoint)) as base:
        assert compute_dtype(base, CPU) is None
    config = json.loads((half_precision / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "fp8"}
    (half_precision / "config.json").write_text(json.dumps(config))
    with open_base(str(half_precision)) as base:
        assert compute_dtype(base, CPU) is None


def test_the_faster_dtype_is_the_one_with_the_shorter_product(monkeypatch: pytest.MonkeyPatch) -> None:
    for seconds, faster in ((1.0, False), (10.0, True)):
        float32_is_faster.cache_clear()
        monkeypatch.setattr(
            module, "_seconds", lambda dtype, seconds=seconds: 1.0 if dtype == torch.float32 else seconds
        )
        assert float32_is_faster(torch.bfloat16) == faster
    float32_is_faster.cache_clear()
