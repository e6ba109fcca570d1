"""Entries of config.json for programs that look for them where transformers 4 wrote them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from transformers import AutoConfig, PreTrainedModel

import sea_export
from sea_export.cli import main
from sea_export.edit.spectral_edit import SpectralEdit
from sea_export.errors import InputError
from sea_export.model.compatible_config import missing_entries
from tests.helpers.messages import naming

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
OF_LAYERS = {
    "full_attention": {"rope_type": "default", "rope_theta": 1e6},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
}


def scaling(rope: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in rope.items() if name != "rope_theta"}


@pytest.mark.parametrize(
    ("config", "missing"),
    [
        ({}, {}),
        ({"rope_parameters": None}, {}),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}, {}),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e5}}, {"rope_theta": 1e5}),
        ({"rope_parameters": {"rope_theta": 1e5}, "rope_theta": 1e5}, {}),
        ({"rope_parameters": LLAMA3}, {"rope_theta": 500000.0, "rope_scaling": scaling(LLAMA3)}),
        ({"rope_parameters": LLAMA3, "rope_scaling": {"rope_type": "llama3"}}, {"rope_theta": 500000.0}),
        (
            {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.25}},
            {"partial_rotary_factor": 0.25},
        ),
        ({"rope_parameters": OF_LAYERS}, {}),
        ({"text_config": {"rope_parameters": {"rope_theta": 1e5}}}, {"text_config.rope_theta": 1e5}),
    ],
)
def test_what_older_readers_miss(config: dict[str, Any], missing: dict[str, Any]) -> None:
    assert missing_entries(config) == missing


@pytest.fixture(params=["default", "llama3"])
def base(request: pytest.FixtureRequest, tiny_checkpoint: Path, tmp_path: Path) -> Path:
    directory = shutil.copytree(tiny_checkpoint, tmp_path / "base")
    config = json.loads((directory / "config.json").read_text())
    config.pop("rope_theta", None)
    config["rope_parameters"] = LLAMA3 if request.param == "llama3" else {"rope_type": "default", "rope_theta": 1e5}
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def test_an_export_has_them_and_is_the_same_model(
    base: Path, llama: PreTrainedModel, fit_tiny: Callable[..., SpectralEdit], tmp_path: Path
) -> None:
    edit = fit_tiny(llama, center="affine")  # its biases change the config too
    output = tmp_path / "out"
    result = sea_export.save(edit, base, output, compatible_config=True, force=True)
    assert result.verification is not None
    assert result.verification.passed
    before, after = (json.loads((one / "config.json").read_text()) for one in (base, output))
    assert after == before | missing_entries(before) | {"mlp_bias": True}
    assert "rope_theta" in after
    read, of_base = AutoConfig.from_pretrained(output), AutoConfig.from_pretrained(base)
    assert read.rope_parameters == of_base.rope_parameters
    assert json.loads((output / "sea_export.json").read_text())["export"]["compatible_config"] is True
    verified = CliRunner().invoke(main, ["verify", str(output), "--base", str(base)])
    assert verified.exit_code == 0, verified.output


def test_another_value_does_not_verify(
    base: Path, llama: PreTrainedModel, fit_tiny: Callable[..., SpectralEdit], tmp_path: Path
) -> None:
    output = tmp_path / "out"
    sea_export.save(fit_tiny(llama), base, output, compatible_config=True, force=True, verify=False)
    config = json.loads((output / "config.json").read_text())
    (output / "config.json").write_text(json.dumps(config | {"rope_theta": 7.0}))
    assert CliRunner().invoke(main, ["verify", str(output), "--base", str(base)]).exit_code == 1


def test_it_is_refused_where_nothing_is_missing(
    tiny_checkpoint: Path, llama: PreTrainedModel, fit_tiny: Callable[..., SpectralEdit], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=naming("compatible_config")):
        sea_export.save(fit_tiny(llama), tiny_checkpoint, tmp_path / "out", compatible_config=True)
    assert not (tmp_path / "out").exists()


def test_doctor_tells_of_them(base: Path, tmp_path: Path) -> None:
    told = CliRunner().invoke(main, ["doctor", str(base), "--limit", "4"])
    assert "--compatible-config" in told.output, told.output
    complete = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(complete | missing_entries(complete)))
    assert "--compatible-config" not in CliRunner().invoke(main, ["doctor", str(base), "--limit", "4"]).output
