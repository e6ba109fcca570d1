"""The read-only view of a checkpoint directory agrees with safetensors, and refuses what safetensors refuses."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save, save_file

from sea_export.errors import InputError, SeaExportError
from sea_export.model.checkpoint import Checkpoint
from sea_export.model.model_files import walk_files
from sea_export.model.safetensors_header import Header, StoredTensor, encode_header, read_header
from tests.helpers.checkpoint_files import (
    INDEX,
    contents_of,
    join_file,
    split_file,
    tensors_of_many_dtypes,
    write_sharded,
    write_single,
)
from tests.helpers.messages import naming


def test_reads_what_safetensors_wrote(tmp_path):
    """Every dtype, a scalar and an empty tensor, out of shards with usual and unusual headers."""
    tensors = tensors_of_many_dtypes()
    checkpoint = Checkpoint.open(write_sharded(tmp_path, tensors))
    assert checkpoint.tensors.keys() == tensors.keys()
    assert len(checkpoint.weight_files) == 3
    for name, expected in tensors.items():
        read = checkpoint.read(name)
        assert read.dtype == expected.dtype == checkpoint.tensors[name].dtype
        assert read.shape == expected.shape == checkpoint.tensors[name].shape
        assert read.view(torch.uint8).equal(expected.view(torch.uint8)) if read.dim() else read == expected


def test_offsets_are_those_of_the_bytes_in_the_file(tmp_path):
    tensors = tensors_of_many_dtypes()
    checkpoint = Checkpoint.open(write_sharded(tmp_path, tensors))
    stored = checkpoint.tensors["layers.0.norm.weight"]
    contents = (tmp_path / stored.file).read_bytes()
    assert contents[stored.start : stored.end] == tensors["layers.0.norm.weight"].numpy().tobytes()


def test_read_gives_a_tensor_of_its_own(tmp_path):
    """Writing into what was read changes neither the file nor the next read."""
    checkpoint = Checkpoint.open(write_single(tmp_path, {"w": torch.ones(3)}))
    checkpoint.read("w").zero_()
    assert checkpoint.read("w").equal(torch.ones(3))


def test_opening_and_reading_leaves_every_byte_alone(tmp_path):
    before = contents_of(write_sharded(tmp_path, tensors_of_many_dtypes()))
    checkpoint = Checkpoint.open(tmp_path)
    checkpoint.read("scale")
    checkpoint.side_files()
    assert contents_of(tmp_path) == before


def test_unknown_tensor_and_shrunken_file(tmp_path):
    checkpoint = Checkpoint.open(write_single(tmp_path, {"w": torch.ones(3)}))
    with pytest.raises(InputError, match=naming("nothing")):
        checkpoint.read("nothing")
    (tmp_path / "model.safetensors").write_bytes((tmp_path / "model.safetensors").read_bytes()[:-1])
    with pytest.raises(SeaExportError, match=r"model\.safetensors"):
        checkpoint.read("w")


def test_single_file_comes_before_an_index(tmp_path):
    """As in transformers: then the index and its shards are left over from another time."""
    write_sharded(tmp_path, {"w": torch.zeros(2), "v": torch.zeros(2), "u": torch.zeros(2)})
    save_file({"w": torch.ones(2)}, tmp_path / "model.safetensors")
    checkpoint = Checkpoint.open(tmp_path)
    assert checkpoint.weight_files == ("model.safetensors",)
    assert checkpoint.index_file is None
    assert checkpoint.read("w").equal(torch.ones(2))
    assert INDEX in checkpoint.left_out()
    assert INDEX not in checkpoint.side_files()


def test_config_can_name_the_weights(tmp_path):
    """`transformers_weights` in config.json comes before the usual names, as in transformers."""
    write_single(tmp_path, {"w": torch.zeros(2)})
    save_file({"w": torch.ones(2)}, tmp_path / "other.safetensors")
    (tmp_path / "config.json").write_text('{"transformers_weights": "other.safetensors"}')
    checkpoint = Checkpoint.open(tmp_path)
    assert checkpoint.read("w").equal(torch.ones(2))
    assert "model.safetensors" in checkpoint.left_out()
    (tmp_path / "config.json").write_text('{"transformers_weights": "../other.safetensors"}')
    with pytest.raises(InputError, match=naming("config.json", "../other.safetensors")):
        Checkpoint.open(tmp_path)


def test_tensor_of_an_indexed_shard_is_reached_without_being_indexed(tmp_path):
    """Readers load all of a shard, so a tensor that the index forgot is part of the model."""
    write_sharded(tmp_path, tensors_of_many_dtypes())
    index = json.loads((tmp_path / INDEX).read_text())
    del index["weight_map"]["scale"]
    (tmp_path / INDEX).write_text(json.dumps(index))
    assert "scale" in Checkpoint.open(tmp_path).tensors


def test_side_files_and_what_is_left_out(tmp_path):
    write_sharded(tmp_path, {"w": torch.zeros(2), "v": torch.zeros(2), "u": torch.zeros(2)})
    save_file({"mtp.w": torch.zeros(2), "w": torch.zeros(2)}, tmp_path / "mtp.safetensors")
    save_file({"w": torch.zeros(2)}, tmp_path / "model_before.safetensors")
    save_file({"old": torch.zeros(2)}, tmp_path / "model-00004-of-00004.safetensors")
    copied = {"preprocessor_config.json", "tokenizer.model", "chat_template.jinja", "vision/model.safetensors"}
    unwanted = {
        "pytorch_model.bin",
        "pytorch_model-00001-of-00002.bin",
        "pytorch_model.bin.index.json",
        "tf_model.h5",
        "flax_model.msgpack",
        "consolidated.00.pth",
        "consolidated.safetensors",
        "model-Q4.gguf",
        "model.fp16.safetensors",
        "README.md",
        "sea_export.json",
    }
    folders = {"onnx/", "openvino/", "original/", ".git/", ".cache/", "sea_edit/"}
    for file in copied | unwanted | {folder + "deep/file" for folder in folders}:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_bytes(b"?")
    checkpoint = Checkpoint.open(tmp_path)
    assert set(checkpoint.left_out()) == unwanted | folders | {
        "model_before.safetensors",
        "model-00004-of-00004.safetensors",
    }
    assert set(checkpoint.side_files()) == copied | {
        "config.json",
        "tokenizer.json",
        "custom/deep/code.py",
        "mtp.safetensors",
        INDEX,
    }
    assert list(checkpoint.side_files()) == sorted(checkpoint.side_files())


def test_snapshot_of_links_is_read_through(tmp_path):
    """The Hub's cache keeps links to blobs; a link to a folder is followed, a broken one is named."""
    repository = tmp_path / "models--org--tiny"
    real = write_single(repository / "blobs", {"w": torch.ones(2)})
    snapshot = repository / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    for path in real.iterdir():
        (snapshot / path.name).symlink_to(path)
    checkpoint = Checkpoint.open(snapshot)
    assert checkpoint.read("w").equal(torch.ones(2))
    assert checkpoint.side_files() == ("config.json", "custom/deep/code.py", "tokenizer.json")
    (snapshot / "lost.json").symlink_to(real / "nowhere")
    with pytest.raises(InputError, match=naming("lost.json")):
        checkpoint.side_files()


def test_link_to_a_parent_folder_is_refused(tmp_path):
    write_single(tmp_path, {"w": torch.ones(2)})
    (tmp_path / "custom" / "loop").symlink_to(tmp_path)
    with pytest.raises(InputError, match=naming("loop")):
        Checkpoint.open(tmp_path).side_files()


def test_config(tmp_path):
    assert Checkpoint.open(write_single(tmp_path, {"w": torch.ones(2)})).config["hidden_size"] == 10
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(InputError, match=naming("config.json", "JSON")):
        Checkpoint.open(tmp_path)
    (tmp_path / "config.json").unlink()
    without_config = Checkpoint.open(tmp_path)
    with pytest.raises(InputError, match=naming(tmp_path / "config.json")):
        _ = without_config.config


@pytest.mark.parametrize("contents", ["{", "[]", "{}", '{"weight_map": {}}', '{"weight_map": ["a"]}', "[" * 99999])
def test_broken_index_is_refused(tmp_path, contents):
    write_sharded(tmp_path, tensors_of_many_dtypes())
    (tmp_path / INDEX).write_text(contents)
    with pytest.raises(InputError, match=naming(INDEX)):
        Checkpoint.open(tmp_path)


@pytest.mark.parametrize("file", ["../w.safetensors", "a/w.safetensors", "a\\w.safetensors", "..", "", 3, None])
def test_shard_names_that_lead_elsewhere_are_refused(tmp_path, file):
    write_sharded(tmp_path, tensors_of_many_dtypes())
    index = json.loads((tmp_path / INDEX).read_text())
    index["weight_map"]["scale"] = file
    (tmp_path / INDEX).write_text(json.dumps(index))
    with pytest.raises(InputError, match=naming(INDEX, repr(file))):
        Checkpoint.open(tmp_path)


def test_index_that_lies_is_refused(tmp_path):
    """A missing shard, a tensor that its shard does not hold, a tensor in the wrong shard, one in two shards."""
    write_sharded(tmp_path, {"a": torch.ones(2), "b": torch.ones(2)}, shards=2)
    index = json.loads((tmp_path / INDEX).read_text())
    first, second = index["weight_map"]["a"], index["weight_map"]["b"]

    def open_with(weight_map: dict[str, str]) -> None:
        (tmp_path / INDEX).write_text(json.dumps({"weight_map": weight_map}))
        Checkpoint.open(tmp_path)

    open_with({"a": first, "b": second})
    with pytest.raises(InputError, match=naming("absent.safetensors", "No such file")):
        open_with({"a": first, "b": "absent.safetensors"})
    with pytest.raises(InputError, match=naming(INDEX, second, "c")):
        open_with({"a": first, "b": second, "c": second})
    with pytest.raises(InputError, match=naming(INDEX, first, "b")):
        open_with({"a": first, "b": first})
    save_file({"a": torch.ones(2), "b": torch.ones(2)}, tmp_path / second)
    with pytest.raises(InputError, match=naming(first, second, "a")):
        open_with({"a": first, "b": second})


def test_no_checkpoint(tmp_path):
    with pytest.raises(InputError, match=naming(tmp_path, "model.safetensors", INDEX)):
        Checkpoint.open(tmp_path)
    with pytest.raises(InputError, match=naming("absent")):
        Checkpoint.open(tmp_path / "absent")
    save_file({}, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=naming("model.safetensors", "no tensors")):
        Checkpoint.open(tmp_path)


GOOD = {
    "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
    "b": {"dtype": "F32", "shape": [1], "data_offsets": [8, 12]},
}


def changed(**entry: object) -> dict:
    return GOOD | {"b": GOOD["b"] | entry}


LYING_HEADERS = {
    "overlapping": changed(data_offsets=[4, 8]),
    "gap": changed(data_offsets=[9, 13]),
    "outside": changed(shape=[3], data_offsets=[8, 20]),
    "negative": changed(data_offsets=[-4, 0]),
    "backwards": changed(data_offsets=[12, 8]),
    "size": changed(shape=[2]),
    "negative shape": changed(shape=[-1]),
    "shape is no list": changed(shape=1),
    "three offsets": changed(data_offsets=[8, 12, 12]),
    "fractional offsets": changed(data_offsets=[8.0, 12.0]),
    "dtype": changed(dtype="F33"),
    "dtype is no text": changed(dtype=["F32"]),
    "entry is no object": GOOD | {"b": 3},
    "entry lacks a key": GOOD | {"b": {"dtype": "F32", "shape": [1]}},
    "metadata is no map": GOOD | {"__metadata__": 3},
    "metadata is no text": GOOD | {"__metadata__": {"a": 1}},
    "bytes that are no tensor's": {"a": GOOD["a"]},
    "no object": b"[1, 2]",
    "no JSON": b"{" * 8,
    "no text": b"\xff\xfe{}",
    "twice the same name": b'{"a":{"dtype":"U8","shape":[12],"data_offsets":[0,12]},' * 2 + b'"c":3}',
    "same name, same entry": b'{"a":{"dtype":"U8","shape":[12],"data_offsets":[0,12]},'
    b'"a":{"dtype":"U8","shape":[12],"data_offsets":[0,12]}}',
}


@pytest.mark.parametrize("header", LYING_HEADERS.values(), ids=LYING_HEADERS.keys())
def test_lying_header_is_refused(tmp_path, header):
    path = tmp_path / "w.safetensors"
    path.write_bytes(join_file(GOOD, bytes(12)))
    assert [tensor.name for tensor in read_header(path).tensors] == ["a", "b"]
    path.write_bytes(join_file(header, bytes(12)))
    with pytest.raises(InputError, match=naming(path, "header")):
        read_header(path)


@pytest.mark.parametrize("contents", [b"", b"1234567", (100).to_bytes(8, "little") + b"{}", b"\xff" * 8 + b"{}"])
def test_file_without_room_for_its_header_is_refused(tmp_path, contents):
    path = tmp_path / "w.safetensors"
    path.write_bytes(contents)
    with pytest.raises(InputError, match=naming(path)):
        read_header(path)
    with pytest.raises(SafetensorError):
        safe_open(path, framework="pt")


def test_header_above_the_limit_is_refused(tmp_path):
    """safetensors refuses headers of more than 100 MB, whatever they say. The file is sparse."""
    path = tmp_path / "w.safetensors"
    with open(path, "wb") as stream:
        stream.write((100_000_001).to_bytes(8, "little"))
        stream.truncate(100_000_100)
    with pytest.raises(InputError, match=naming(path)):
        read_header(path)


def test_truncated_file_is_refused_as_safetensors_refuses_it(tmp_path):
    path = tmp_path / "w.safetensors"
    contents = save({"w": torch.ones(4)})
    path.write_bytes(contents[:-1])
    with pytest.raises(InputError, match=naming(path, len(contents), len(contents) - 1)):
        read_header(path)
    with pytest.raises(SafetensorError):
        safe_open(path, framework="pt")


def test_encoded_header_is_one_that_safetensors_reads(tmp_path):
    tensors = tensors_of_many_dtypes()
    path = tmp_path / "w.safetensors"
    save_file(tensors, path, metadata={"format": "pt"})
    header = read_header(path)
    _, data = split_file(path.read_bytes())
    rewritten = tmp_path / "v.safetensors"
    rewritten.write_bytes(encode_header(header) + data)
    assert len(encode_header(header)) % 8 == 0
    with safe_open(rewritten, framework="pt") as stream:
        assert stream.metadata() == {"format": "pt"}
        assert set(stream.keys()) == set(tensors)
        assert stream.get_tensor("layers.1.half").equal(tensors["layers.1.half"])


def test_encoding_keeps_names_that_are_not_ascii():
    tensor = StoredTensor("poids.é", "U8", (0,), "w.safetensors", 0, 0)
    encoded = encode_header(Header(0, {}, (tensor,)))
    assert "poids.é".encode() in encoded


def test_relative_directory(tmp_path, monkeypatch):
    write_single(tmp_path / "model", {"w": torch.ones(2)})
    monkeypatch.chdir(tmp_path)
    assert Checkpoint.open("model").directory == Path("model")


@pytest.mark.parametrize("place", [b"a\xff.txt", b"notes-\xc3/text.txt"])
def test_a_file_whose_name_is_not_text_is_named(place: bytes, tmp_path: Path) -> None:
    path = os.path.join(os.fsencode(tmp_path), place)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb"):
        pass
    with pytest.raises(InputError, match="its name is not UTF-8"):
        list(walk_files(tmp_path, ()))
