"""A comparison finds what differs, how far, and nothing else."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sea_export.errors import InputError
from sea_export.export.merged.merge_writer import write_checkpoint
from sea_export.model import diff
from sea_export.model.checkpoint import Checkpoint
from sea_export.model.diff import CheckpointDifference, TensorDifference, compare_checkpoints
from tests.helpers.checkpoint_files import tensors_of_many_dtypes, write_sharded, write_single
from tests.helpers.messages import naming


def compared(a: Path, b: Path) -> CheckpointDifference:
    return compare_checkpoints(Checkpoint.open(a), Checkpoint.open(b))


@pytest.fixture
def base(tmp_path) -> Path:
    return write_sharded(tmp_path / "a", tensors_of_many_dtypes())


def pair(tmp_path: Path, a: torch.Tensor, b: torch.Tensor) -> tuple[Path, Path]:
    return write_single(tmp_path / "one", {"w": a}), write_single(tmp_path / "two", {"w": b})


def test_copy_has_no_differences(base, tmp_path):
    shutil.copytree(base, tmp_path / "b")
    difference = compared(base, tmp_path / "b")
    assert difference.same_weights
    assert difference.tensors_identical == len(tensors_of_many_dtypes())
    assert difference.files_identical == 4
    empty = {name: value for name, value in vars(difference).items() if not name.endswith("_identical")}
    assert not any(empty.values())


def test_other_shards_hold_the_same_weights(base, tmp_path):
    """What counts is the tensors, not the files they are in."""
    write_single(tmp_path / "b", tensors_of_many_dtypes())
    difference = compared(base, tmp_path / "b")
    assert difference.same_weights
    assert difference.tensors_identical == len(tensors_of_many_dtypes())
    assert difference.files_only_in_a == ("model.safetensors.index.json",)
    assert not difference.files_changed


@pytest.mark.parametrize("chunk", [8, 64, 1 << 20])
def test_numbers_are_those_of_the_whole_tensors(base, tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(diff, "_CHUNK_BYTES", chunk)
    tensors = tensors_of_many_dtypes()
    names = ("layers.0.down.weight", "layers.1.half", "layers.1.double", "scale", "eighth", "packed", "mask")
    changed = {name: shift(tensors[name]) for name in names}
    write_single(tmp_path / "b", tensors | changed)
    difference = compared(base, tmp_path / "b")
    assert not difference.same_weights
    assert set(difference.tensors_changed) == set(names)
    assert difference.tensors_identical == len(tensors) - len(names)
    for name in names:
        a, b = tensors[name].double(), changed[name].double()
        measured = difference.tensors_changed[name]
        assert measured.maximum == float((b - a).abs().max())
        assert measured.relative == pytest.approx(float((b - a).norm() / a.norm()), rel=1e-12)


def shift(tensor: torch.Tensor) -> torch.Tensor:
    """The same tensor with its last element changed."""
    shifted = tensor.clone().reshape(-1)
    shifted[-1] = (~tensor.reshape(-1)[-1]) if tensor.dtype == torch.bool else tensor.reshape(-1)[-1].double() + 1
    return shifted.reshape(tensor.shape)


def test_special_values(tmp_path):
    """Signs of zeros, infinities and what is not a number."""
    one, two = pair(tmp_path, torch.tensor([0.0, 3.0]), torch.tensor([-0.0, 3.0]))
    assert compared(one, two).tensors_changed == {"w": TensorDifference(0.0, 0.0)}
    assert not compared(one, two).same_weights

    def measured(a: list[float], b: list[float]) -> TensorDifference:
        save_file({"w": torch.tensor(a)}, one / "model.safetensors")
        save_file({"w": torch.tensor(b)}, two / "model.safetensors")
        return compared(one, two).tensors_changed["w"]

    assert measured([0.0, 0.0], [0.0, 2.0]) == TensorDifference(2.0, math.inf)
    assert measured([math.inf, 1.0], [math.inf, 2.0]).maximum == 1.0
    assert math.isnan(measured([1.0, 1.0], [math.nan, 1.0]).maximum)
    assert math.isnan(measured([1.0, 1.0], [math.nan, 1.0]).relative)


def test_complex_numbers(tmp_path):
    one, two = pair(tmp_path, torch.tensor([3 + 4j]), torch.tensor([3 + 3j]))
    assert compared(one, two).tensors_changed == {"w": TensorDifference(1.0, 0.2)}


def test_tensors_of_other_names_and_forms(base, tmp_path):
    tensors = tensors_of_many_dtypes()
    tensors["layers.1.half"] = tensors["layers.1.half"].float()
    tensors["layers.1.double"] = tensors["layers.1.double"].reshape(10, 6)
    tensors["new"] = tensors.pop("scale")
    write_sharded(tmp_path / "b", tensors)
    difference = compared(base, tmp_path / "b")
    assert difference.tensors_only_in_a == ("scale",)
    assert difference.tensors_only_in_b == ("new",)
    assert set(difference.tensors_of_other_form) == {"layers.1.half", "layers.1.double"}
    old, new = difference.tensors_of_other_form["layers.1.half"]
    assert (old.dtype, new.dtype) == (torch.float16, torch.float32)
    assert not difference.tensors_changed
    assert not difference.same_weights


def test_files_and_metadata(base, tmp_path):
    other = tmp_path / "b"
    shutil.copytree(base, other)
    (other / "config.json").write_text("{}")
    (other / "tokenizer.json").write_bytes((base / "tokenizer.json").read_bytes()[:-1] + b" ")
    (other / "custom" / "deep" / "code.py").unlink()
    (other / "README.md").write_text("card")
    (other / ".cache").mkdir()
    (other / ".cache" / "x").write_text("x")
    shard = "model-00001-of-00003.safetensors"
    names = [tensor.name for tensor in Checkpoint.open(base).tensors.values() if tensor.file == shard]
    held = {name: tensors_of_many_dtypes()[name] for name in names}
    save_file(held, other / shard, metadata={"format": "np"})
    difference = compared(base, other)
    assert difference.files_changed == ("config.json", "tokenizer.json")
    assert difference.files_only_in_a == ("custom/deep/code.py",)
    assert difference.files_only_in_b == ("README.md",)
    assert difference.files_identical == 1
    assert difference.metadata_changed == (shard,)
    assert difference.same_weights


def test_comparison_agrees_with_the_writer(base, tmp_path):
    """What an export reports as edited is what a comparison finds, no more and no less."""
    (tmp_path / "b").mkdir()
    edits = dict.fromkeys(("layers.0.down.weight", "scale"), lambda tensor: 2 * tensor)
    report = write_checkpoint(
        Checkpoint.open(base), tmp_path / "b", edits, additions={"new": torch.ones(2)}, config_changes={"x": 1}
    )
    difference = compared(base, tmp_path / "b")
    assert set(difference.tensors_changed) == set(report.edited)
    assert difference.tensors_only_in_b == report.added
    assert difference.tensors_changed["scale"] == TensorDifference(1.5, 1.0)
    assert difference.files_changed == ("config.json", "model.safetensors.index.json")


def test_what_is_no_checkpoint_is_refused(base, tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "config.json").write_text(json.dumps({}))
    with pytest.raises(InputError, match=naming(tmp_path / "b", "model.safetensors", "model.safetensors.index.json")):
        compared(base, tmp_path / "b")
