"""Models that are evaluated: how they are opened."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

import sea_export
from sea_export.edit.spectral_edit import SpectralEdit
from sea_export.errors import InputError
from sea_export.evaluation.loaded_model import check_loadable, open_loaded_model
from sea_export.model.run_options import RunOptions
from tests.helpers.gguf_files import write_gguf
from tests.helpers.messages import naming

TOKENS = torch.tensor([[5, 6, 7, 8]])


def logits(model: str | Path, run: RunOptions) -> torch.Tensor:
    with open_loaded_model(str(model), run) as loaded, torch.no_grad():
        return loaded.model(TOKENS).logits


@pytest.mark.parametrize("device_map", [None, "auto"])
def test_an_adapter_is_applied_to_the_base_that_it_names(
    device_map: str | None,
    llama: PreTrainedModel,
    fit_tiny: Callable[..., SpectralEdit],
    tiny_checkpoint: Path,
    tmp_path: Path,
) -> None:
    edit = fit_tiny(llama)
    sea_export.save(edit, tiny_checkpoint, tmp_path / "adapter", format="adapter", verify=False)
    with edit.apply(llama), torch.no_grad():
        expected = llama(TOKENS).logits
    run = RunOptions(device="cpu", device_map=device_map)
    found = logits(tmp_path / "adapter", run)
    assert torch.allclose(found, expected, atol=1e-4)
    assert not torch.allclose(logits(tiny_checkpoint, run), expected, atol=1e-2), "the edit does something"


def test_quantized_weights_are_made_plain_where_there_are_some(
    quantized_checkpoint: Path, tiny_checkpoint: Path, llama: PreTrainedModel
) -> None:
    run = RunOptions(dequantize=True, dtype="float32", device="cpu")
    with open_loaded_model(str(quantized_checkpoint), run) as loaded:
        assert not getattr(loaded.model, "is_quantized", False)
        assert {parameter.dtype for parameter in loaded.model.parameters()} == {torch.float32}
    with torch.no_grad():
        assert torch.equal(logits(tiny_checkpoint, run), llama(TOKENS).logits)


def test_a_gguf_file_is_converted_and_loaded(tmp_path: Path) -> None:
    weights = write_gguf(tmp_path / "tiny.gguf")
    run = RunOptions(dtype="float32", device="cpu")
    check_loadable(str(tmp_path / "tiny.gguf"), run)
    with open_loaded_model(str(tmp_path / "tiny.gguf"), run) as loaded:
        down = loaded.model.get_parameter("model.layers.0.mlp.down_proj.weight")
    assert torch.equal(down, weights["model.layers.0.mlp.down_proj.weight"])


def test_a_layer_at_a_time_is_refused(tiny_checkpoint: Path) -> None:
    with (
        pytest.raises(InputError, match=naming("--layerwise", tiny_checkpoint)),
        open_loaded_model(str(tiny_checkpoint), RunOptions(layerwise=True)),
    ):
        pass


def test_a_device_that_is_not_there_is_told_before_a_model_is_opened(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sea_export.evaluation.loaded_model.open_base", lambda *_, **__: pytest.fail("it is opened"))
    for device in ("cuda:77", "fpga"):
        with (
            pytest.raises(InputError, match=naming("--device", device)),
            open_loaded_model(str(tiny_checkpoint), RunOptions(device=device)),
        ):
            pass
