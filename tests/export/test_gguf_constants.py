"""Edits of GGUF files by a constant alone: weights are not encoded again, because that would only round them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sea_export.edit.fold import changes_weights
from sea_export.errors import SeaExportError
from sea_export.export.manifest import read_manifest
from sea_export.model.targets import Target
from sea_export.saving import save
from tests.helpers.gguf_files import write_gguf, write_gguf_of
from tests.helpers.tiny_edits import constant_edit, some_edit, spectral_edit

gguf = pytest.importorskip("gguf")

TARGETS = [Target(0, "attention"), Target(1, "mlp")]


def raw_tensors(path: Path) -> dict[str, tuple[str, bytes]]:
    return {one.name: (one.tensor_type.name, one.data.tobytes()) for one in gguf.GGUFReader(path).tensors}


def changed(a: Path, b: Path) -> set[str]:
    before, after = raw_tensors(a), raw_tensors(b)
    return {name for name in after if before.get(name) != after[name]}


@pytest.mark.parametrize(("stored", "asked"), [("Q4_1", "auto"), ("Q6_K", "auto"), ("F16", "Q8_0")])
def test_only_biases_are_added(stored: str, asked: str, tmp_path: Path) -> None:
    types = {"ffn_down": stored, "attn_output": "Q5_0"}
    write_gguf(tmp_path / "m.gguf", layers=3, types=types, feed_forward=256)
    own = constant_edit(TARGETS, size=32)
    options = {"format": "gguf", "gguf_type": asked, "dtype": torch.float32}
    result = save(own, tmp_path / "m.gguf", tmp_path / "out", **options)
    biases = {"blk.0.attn_output.bias", "blk.1.ffn_down.bias"}
    assert changed(tmp_path / "m.gguf", tmp_path / "out" / "m.gguf") == biases == set(result.report.added)
    verification = result.verification
    assert verification is not None
    assert verification.passed
    assert verification.statement.startswith("2 biases are added; 30 tensors are byte-identical")
    assert read_manifest(tmp_path / "out")["gguf"]["types"] == {}


def test_only_biases_are_changed(tmp_path: Path) -> None:
    write_gguf_of(tmp_path / "m.gguf", "gpt2")
    own = constant_edit(TARGETS, size=32)
    result = save(own, tmp_path / "m.gguf", tmp_path / "out", format="gguf", gguf_type="Q8_0", dtype=torch.float32)
    assert changed(tmp_path / "m.gguf", tmp_path / "out" / "m.gguf") == {
        "blk.0.attn_output.bias",
        "blk.1.ffn_down.bias",
    }
    assert result.verification is not None
    assert result.verification.passed


def test_a_layer_that_is_not_changed_is_not_encoded_again(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", layers=3, types={"ffn_down": "Q4_0"})
    first, second = Target(1, "mlp"), Target(2, "mlp")
    (constant,) = constant_edit([first], size=32).layers[first]
    nothing = {first: (replace(constant, shift=None),)}
    own = spectral_edit([second], size=32)
    save(replace(own, layers={**nothing, **own.layers}), tmp_path / "m.gguf", tmp_path / "out", format="gguf")
    assert changed(tmp_path / "m.gguf", tmp_path / "out" / "m.gguf") == {"blk.2.ffn_down.weight"}
    with pytest.raises(SeaExportError, match=r"m\.gguf: the edit changes nothing in it"):
        save(replace(own, layers=nothing), tmp_path / "m.gguf", tmp_path / "none", format="gguf", verify=False)


def test_what_changes_weights() -> None:
    (only,) = constant_edit([Target(0, "mlp")]).layers[Target(0, "mlp")]
    assert not changes_weights([only])
    assert not changes_weights([only, only])
    for center, normalization in (("off", "none"), ("affine", "none"), ("linear", "calibrated"), ("off", "average")):
        assert changes_weights([only, some_edit(center=center, normalization=normalization)])
