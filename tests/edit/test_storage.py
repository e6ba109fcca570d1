"""An edit comes back from disk exactly, and a damaged one does not come back at all."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sea_export.edit.layer_edit import LayerEdit
from sea_export.edit.spectral_edit import SpectralEdit, compose
from sea_export.errors import InputError, SeaExportError
from sea_export.model.targets import Target
from sea_export.options import CENTERS, PROJECTIONS, EditOptions
from tests.helpers.messages import naming
from tests.helpers.tiny_edits import MLP_TARGETS, SIZE, TARGET_SETS, layer_edit, spectral_edit


def assert_same_edit(one: SpectralEdit, other: SpectralEdit) -> None:
    assert one.targets == other.targets
    assert one.provenance == other.provenance
    for target in one.targets:
        assert len(one.layers[target]) == len(other.layers[target])
        for mine, theirs in zip(one.layers[target], other.layers[target], strict=True):
            for item in fields(LayerEdit):
                value, stored = getattr(mine, item.name), getattr(theirs, item.name)
                if isinstance(value, Tensor):
                    assert torch.equal(value, stored)
                    assert value.dtype == stored.dtype
                else:
                    assert value == stored
                    assert type(value) is type(stored)


@pytest.mark.parametrize("center", CENTERS)
def test_an_edit_comes_back_from_disk_exactly(tmp_path, center):
    edit = spectral_edit(TARGET_SETS["both"], center=center)
    edit.save(tmp_path / "new" / "edit")
    assert_same_edit(SpectralEdit.load(tmp_path / "new" / "edit"), edit)


@pytest.mark.parametrize("projections", PROJECTIONS)
def test_edits_with_empty_factors_come_back_from_disk(tmp_path, projections):
    options = EditOptions(positive_rank=0, projections=projections)
    edit = SpectralEdit({Target(0, "mlp"): (layer_edit(options=options),)})
    edit.save(tmp_path)
    assert_same_edit(SpectralEdit.load(tmp_path), edit)


def test_composed_edits_come_back_from_disk_even_with_themselves(tmp_path):
    edit = compose([spectral_edit(MLP_TARGETS), spectral_edit(MLP_TARGETS, center="affine")])
    edit.save(tmp_path / "two")
    assert_same_edit(SpectralEdit.load(tmp_path / "two"), edit)
    twice = compose([edit, edit])
    twice.save(tmp_path / "four")
    assert_same_edit(SpectralEdit.load(tmp_path / "four"), twice)


def test_the_same_edit_gives_the_same_bytes(tmp_path):
    for name in ("one", "other"):
        spectral_edit(TARGET_SETS["both"], center="linear").save(tmp_path / name)
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert files == ["sea_edit.json", "sea_edit.safetensors"]
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "other" / file).read_bytes()


def test_an_edit_is_found_inside_a_checkpoint(tmp_path):
    edit = spectral_edit(MLP_TARGETS)
    edit.save(tmp_path / "sea_edit")
    assert_same_edit(SpectralEdit.load(tmp_path), edit)


def test_a_loaded_edit_edits_as_the_saved_one(tmp_path, llama):
    edit = spectral_edit(MLP_TARGETS, center="linear")
    edit.save(tmp_path)
    logits = []
    for applied in (edit, SpectralEdit.load(tmp_path)):
        with applied.apply(llama), torch.inference_mode():
            logits.append(llama(torch.tensor([[5, 40, 7]])).logits)
    torch.testing.assert_close(*logits, rtol=1e-5, atol=1e-5)


def test_a_directory_without_an_edit_is_refused(tmp_path):
    with pytest.raises(InputError, match=naming(tmp_path, "sea_edit.json")):
        SpectralEdit.load(tmp_path)
    with pytest.raises(InputError, match=naming(tmp_path / "missing", "no such file or directory")):
        SpectralEdit.load(tmp_path / "missing")


def _rewrite_json(directory, change):
    path = directory / "sea_edit.json"
    description = json.loads(path.read_text())
    path.write_text(json.dumps(change(description)))


def _rewrite_tensors(directory, change):
    path = directory / "sea_edit.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


DAMAGES = {
    "no tensors": lambda directory: (directory / "sea_edit.safetensors").unlink(),
    "tensors cut short": lambda directory: (directory / "sea_edit.safetensors").write_bytes(
        (directory / "sea_edit.safetensors").read_bytes()[:-100]
    ),
    "tensors empty": lambda directory: (directory / "sea_edit.safetensors").write_bytes(b""),
    "no JSON": lambda directory: (directory / "sea_edit.json").write_text("{"),
    "not UTF-8": lambda directory: (directory / "sea_edit.json").write_bytes(b"\xff\xfe\x00"),
    "JSON list": lambda directory: (directory / "sea_edit.json").write_text("[]"),
    "later format": lambda directory: _rewrite_json(directory, lambda text: text | {"format_version": 99}),
    "no provenance": lambda directory: _rewrite_json(directory, lambda text: text.pop("provenance") and text),
    "layers a list": lambda directory: _rewrite_json(directory, lambda text: text | {"layers": ["1.mlp"]}),
    "no layers": lambda directory: _rewrite_json(directory, lambda text: text | {"layers": {}}),
    "layer without edits": lambda directory: _rewrite_json(directory, lambda text: text | {"layers": {"1.mlp": []}}),
    "unknown component": lambda directory: _rewrite_json(
        directory, lambda text: text | {"layers": {"1.norm": text["layers"]["1.mlp"]}}
    ),
    "layer without tensors": lambda directory: _rewrite_json(
        directory, lambda text: text | {"layers": {"2.mlp": text["layers"]["1.mlp"]}}
    ),
    "number missing": lambda directory: _rewrite_json(
        directory, lambda text: text["layers"]["1.mlp"][0].pop("strength") and text
    ),
    "tensor missing": lambda directory: _rewrite_tensors(directory, lambda tensors: tensors.pop("1.mlp.0.positive")),
    "tensor unknown": lambda directory: _rewrite_tensors(
        directory, lambda tensors: tensors.update({"1.mlp.0.extra": torch.zeros(2)})
    ),
    "tensor of another size": lambda directory: _rewrite_tensors(
        directory, lambda tensors: tensors.update({"1.mlp.0.scale": torch.ones(SIZE - 1)})
    ),
    "tensor of another rank": lambda directory: _rewrite_tensors(
        directory, lambda tensors: tensors.update({"1.mlp.0.positive": torch.ones(SIZE)})
    ),
    "NaN in a tensor": lambda directory: _rewrite_tensors(
        directory, lambda tensors: tensors["1.mlp.0.positive"].fill_(float("nan"))
    ),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_edit_is_refused(tmp_path, damage):
    spectral_edit(MLP_TARGETS).save(tmp_path)
    SpectralEdit.load(tmp_path)
    damage(tmp_path)
    with pytest.raises(InputError):
        SpectralEdit.load(tmp_path)


@pytest.mark.parametrize("text", ["mlp", "1", "1.norm", "a.mlp", "1.2.mlp", ""])
def test_a_target_is_read_from_its_own_spelling_alone(text):
    assert Target.parse(str(Target(12, "attention"))) == Target(12, "attention")
    with pytest.raises(ValueError):  # noqa: PT011 (the message is for whoever damaged the file)
        Target.parse(text)


def test_what_could_not_be_read_again_is_not_written(tmp_path: Path) -> None:
    edit = spectral_edit([Target(1, "mlp")])
    (layers,) = edit.layers.values()
    huge = replace(edit, layers={Target(1, "mlp"): (replace(layers[0], signature=1e39),)})
    with pytest.raises(SeaExportError, match=r"signature of 1\.mlp"):
        huge.save(tmp_path / "edit")
    with pytest.raises(InputError, match="--strength"):
        EditOptions(strength=1e31)


def test_numbers_that_are_written_as_integers_are_floats(tmp_path: Path) -> None:
    spectral_edit([Target(1, "mlp")]).save(tmp_path)
    file = tmp_path / "sea_edit.json"
    description = json.loads(file.read_text(encoding="utf-8"))
    description["layers"]["1.mlp"][0].update(strength=10**29, identity=1)
    file.write_text(json.dumps(description), encoding="utf-8")
    (edit,) = SpectralEdit.load(tmp_path).layers[Target(1, "mlp")]
    assert (type(edit.strength), type(edit.identity)) == (float, float)
