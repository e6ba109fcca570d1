"""Whatever MODEL names becomes a safetensors checkpoint with the same values, or a sentence that says why not."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shutil
from pathlib import Path
from unittest.mock import Mock

import huggingface_hub
import pytest
import torch
from huggingface_hub import errors
from transformers import AutoModelForCausalLM

from sea_export.errors import InputError
from sea_export.model.base import open_base
from sea_export.model.header_only import header_only_base
from tests.helpers.checkpoint_files import (
    contents_of,
    tensors_of_many_dtypes,
    write_sharded,
    write_side_files,
    write_single,
)
from tests.helpers.gguf_files import write_gguf
from tests.helpers.messages import naming

FLOATS = {"a.weight": torch.randn(4, 3), "b.weight": torch.randn(3).bfloat16()}


def refused(model: object, *facts: object, **options: object) -> None:
    """Asserts that a model is refused in one line that names it and some facts."""
    with (
        pytest.raises(InputError, match=naming(Path(str(model)).name, *facts)) as caught,
        open_base(str(model), **options),
    ):
        pass
    assert "\n" not in str(caught.value)


# Directories of safetensors


def test_safetensors_directory_is_used_as_it_is(tmp_path):
    directory = write_sharded(tmp_path / "model", tensors_of_many_dtypes())
    before = contents_of(directory)
    with open_base(str(directory)) as base:
        assert base.checkpoint.directory == directory
        assert base.name == "model"
        assert base.revision is None
    assert contents_of(directory) == before


def test_name_never_holds_a_local_path(tmp_path, monkeypatch):
    write_single(tmp_path / "model", FLOATS)
    monkeypatch.chdir(tmp_path / "model")
    with open_base(".") as base:
        assert base.name == "model"


def test_digests_are_those_of_the_files(tmp_path):
    directory = write_sharded(tmp_path, tensors_of_many_dtypes())
    with open_base(str(directory)) as base:
        digests = base.weight_digests
        assert list(digests) == list(base.checkpoint.weight_files)
    for file, digest in digests.items():
        assert digest == hashlib.sha256((directory / file).read_bytes()).hexdigest()


def test_local_things_that_are_no_model(tmp_path):
    refused(tmp_path, "model.safetensors", "pytorch_model.bin")
    (tmp_path / "notes.txt").write_text("x")
    refused(tmp_path / "notes.txt", ".gguf")
    refused(tmp_path / "absent" / "deeper", ".gguf", "Hub")
    (tmp_path / "w-Q4.gguf").write_bytes(b"GGUF")
    refused(tmp_path, "w-Q4.gguf")
    (tmp_path / "adapter_config.json").write_text("{}")
    refused(tmp_path, "adapter")


def test_weights_without_a_config(tmp_path):
    write_single(tmp_path, FLOATS)
    (tmp_path / "config.json").unlink()
    refused(tmp_path, "config.json")


def test_revision_of_a_local_path_is_refused(tmp_path):
    write_single(tmp_path, FLOATS)
    refused(tmp_path, "Hub", revision="main")


# PyTorch pickles


def write_pickled(directory: Path, tensors: dict, *, sharded: bool) -> Path:
    directory.mkdir()
    write_side_files(directory)
    if not sharded:
        torch.save(tensors, directory / "pytorch_model.bin")
        return directory
    weight_map = {}
    for shard, (name, tensor) in enumerate(tensors.items()):
        weight_map[name] = f"pytorch_model-{shard + 1:05}-of-{len(tensors):05}.bin"
        torch.save({name: tensor}, directory / weight_map[name])
    (directory / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return directory


@pytest.mark.parametrize("sharded", [False, True], ids=["single", "sharded"])
def test_pickled_model_becomes_safetensors(tmp_path, sharded):
    directory = write_pickled(tmp_path / "model", FLOATS, sharded=sharded)
    before = contents_of(directory)
    (tmp_path / "staging").mkdir()
    with open_base(str(directory), staging=tmp_path / "staging") as base:
        assert base.name == "model"
        converted = base.checkpoint.directory
        assert converted.is_relative_to(tmp_path / "staging")
        assert base.checkpoint.tensors.keys() == FLOATS.keys()
        for name, tensor in FLOATS.items():
            assert base.checkpoint.read(name).dtype == tensor.dtype
            assert base.checkpoint.read(name).equal(tensor)
        assert base.checkpoint.side_files() == ("config.json", "custom/deep/code.py", "tokenizer.json")
        assert (converted / "tokenizer.json").read_bytes() == before["tokenizer.json"]
        assert base.checkpoint.left_out() == ()
    assert not list((tmp_path / "staging").iterdir())
    assert contents_of(directory) == before


def test_conversion_is_removed_when_the_work_fails(tmp_path):
    directory = write_pickled(tmp_path / "model", FLOATS, sharded=False)
    (tmp_path / "staging").mkdir()

    def interrupted() -> None:
        with open_base(str(directory), staging=tmp_path / "staging"):
            assert list((tmp_path / "staging").iterdir())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not list((tmp_path / "staging").iterdir())


def test_pickled_tensors_that_share_memory(tmp_path):
    """Tied embeddings are stored once, as transformers stores them, and files of the old format can be read."""
    embedding = torch.randn(5, 3)
    directory = tmp_path / "model"
    write_pickled(directory, {}, sharded=False)
    tensors = {"lm_head.weight": embedding, "model.embed_tokens.weight": embedding, "norm.weight": torch.ones(3)}
    torch.save(tensors, directory / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    with open_base(str(directory)) as base:
        assert base.checkpoint.tensors.keys() == {"model.embed_tokens.weight", "norm.weight"}
        assert base.checkpoint.read("model.embed_tokens.weight").equal(embedding)


def test_safetensors_come_before_pickles(tmp_path):
    directory = write_pickled(tmp_path / "model", {"a": torch.zeros(2)}, sharded=False)
    write_single(tmp_path / "other", {"a": torch.ones(2)})
    (tmp_path / "other" / "model.safetensors").rename(directory / "model.safetensors")
    with open_base(str(directory)) as base:
        assert base.checkpoint.read("a").equal(torch.ones(2))


class RunsCode:
    """A pickle of this runs a function of its author's choice."""

    def __reduce__(self):
        return print, ("code was run",)


def test_pickle_that_needs_code_is_refused_and_not_run(tmp_path, capsys):
    directory = write_pickled(tmp_path / "model", {"a": RunsCode()}, sharded=False)
    refused(directory, "pytorch_model.bin", "__builtin__", "print")
    assert "code was run" not in capsys.readouterr().out


def test_damaged_pickles(tmp_path):
    directory = write_pickled(tmp_path / "model", FLOATS, sharded=True)
    index = directory / "pytorch_model.bin.index.json"
    weight_map = json.loads(index.read_text())["weight_map"]
    shard = directory / weight_map["a.weight"]
    whole = shard.read_bytes()
    shard.write_bytes(whole[: len(whole) // 2])
    refused(directory, shard.name)
    shard.unlink()
    refused(directory, shard.name, "No such file")
    torch.save([torch.ones(2)], shard)
    refused(directory, shard.name, "map")
    torch.save({"a.weight": 3}, shard)
    refused(directory, shard.name, "map")
    index.write_text("{}")
    refused(directory, index.name, "weight_map")


# GGUF


def test_gguf_becomes_an_ordinary_model(tmp_path):
    """The unpacked weights, a config that calls nothing quantized, the tokenizer with its chat template."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    weights = write_gguf(tmp_path / "tiny-Q8.gguf")
    with open_base(str(tmp_path / "tiny-Q8.gguf")) as base:
        assert base.name == "tiny-Q8.gguf"
        assert {tensor.dtype for tensor in base.checkpoint.tensors.values()} == {torch.bfloat16}
        config = base.checkpoint.config
        assert config.keys().isdisjoint({"quantization_config", "_name_or_path", "_model_name_or_path"})
        assert config["rope_theta"] == 50000.0
        written = b"".join(contents_of(base.checkpoint.directory).values())
        assert str(tmp_path).encode() not in written
        directory = base.checkpoint.directory
        model, report = AutoModelForCausalLM.from_pretrained(
            directory, torch_dtype=torch.float32, output_loading_info=True
        )
        tokenizer = AutoTokenizer.from_pretrained(directory)
        assert not report["missing_keys"]
        assert not report["unexpected_keys"]
    state = model.state_dict()
    # GGUF orders the rows of query and key for another rotary layout; transformers reorders them.
    for name in weights.keys() - {f"model.layers.0.self_attn.{kind}_proj.weight" for kind in "qk"}:
        assert state[name].equal(weights[name].bfloat16().float()), name
    assert tokenizer("abbba").input_ids[-3:] == [5, 6, 3]
    assert tokenizer.chat_template == "{{ messages[0]['content'] }}"
    assert model.generation_config.eos_token_id == 2


def test_gguf_is_unpacked_to_the_dtype_asked_for_and_always_the_same(tmp_path):
    weights = write_gguf(tmp_path / "tiny.gguf")
    contents = []
    for _ in range(2):
        with open_base(str(tmp_path / "tiny.gguf"), dtype=torch.float32) as base:
            down = base.checkpoint.read("model.layers.0.mlp.down_proj.weight")
            assert down.equal(weights["model.layers.0.mlp.down_proj.weight"])
            contents.append(contents_of(base.checkpoint.directory))
    assert contents[0] == contents[1]


def test_gguf_that_lacks_weights_is_refused(tmp_path):
    """One part of a split model would otherwise load, the rest of its weights random."""
    write_gguf(tmp_path / "part.gguf", without="blk.0.ffn_down.weight")
    refused(tmp_path / "part.gguf", "model.layers.0.mlp.down_proj.weight")


def test_gguf_in_parts_is_the_same_model(tmp_path):
    pytest.importorskip("gguf")
    weights = write_gguf(tmp_path / "tiny.gguf", layers=2, split=7)
    with open_base(str(tmp_path / "tiny-00001-of-00003.gguf"), dtype=torch.float32) as base:
        assert base.name == "tiny-00001-of-00003.gguf"
        for name in ("model.layers.1.mlp.down_proj.weight", "lm_head.weight"):
            assert base.checkpoint.read(name).equal(weights[name])
        assert not base.config.tie_word_embeddings
    with header_only_base(str(tmp_path / "tiny-00001-of-00003.gguf")) as base:
        assert not base.config.tie_word_embeddings
    refused(tmp_path / "tiny-00002-of-00003.gguf", "Give the first one")
    (tmp_path / "tiny-00003-of-00003.gguf").unlink()
    refused(tmp_path / "tiny-00001-of-00003.gguf", "tiny-00003-of-00003.gguf")


def test_gguf_keeps_biases_that_transformers_would_drop(tmp_path):
    pytest.importorskip("gguf")
    weights = write_gguf(tmp_path / "tiny.gguf", layers=2, biases=True)
    with open_base(str(tmp_path / "tiny.gguf"), dtype=torch.float32) as base:
        assert base.config.mlp_bias
        assert base.config.attention_bias
        for layer in range(2):
            for name in ("mlp.down_proj.bias", "self_attn.o_proj.bias"):
                name = f"model.layers.{layer}.{name}"
                assert base.checkpoint.read(name).equal(weights[name])
            for name in ("mlp.up_proj.bias", "self_attn.q_proj.bias"):
                assert not base.checkpoint.read(f"model.layers.{layer}.{name}").any()


def test_gguf_that_is_none(tmp_path):
    (tmp_path / "not.gguf").write_bytes(b"PK\x03\x04 and more")
    refused(tmp_path / "not.gguf", "GGUF")
    (tmp_path / "cut.gguf").write_bytes(b"GGUF")
    refused(tmp_path / "cut.gguf")


def test_gguf_without_its_package(tmp_path, monkeypatch):
    (tmp_path / "tiny.gguf").write_bytes(b"GGUF")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    refused(tmp_path / "tiny.gguf", "sea-export[gguf]")


# The Hub


def response(status: int) -> Mock:
    return Mock(status_code=status, headers={}, request=None)


@pytest.mark.parametrize(
    ("error", "facts"),
    [
        (errors.GatedRepoError("403", response=response(403)), ["hf auth login", "terms"]),
        (errors.RepositoryNotFoundError("404", response=response(404)), ["hf auth login"]),
        (errors.RevisionNotFoundError("404", response=response(404)), ["v9"]),
        (errors.LocalEntryNotFoundError("offline"), ["HF_HUB_OFFLINE"]),
        (errors.HfHubHTTPError("500 Server Error\ndetails", response=response(500)), ["500 Server Error"]),
        (OSError(28, "No space left on device"), ["No space left on device"]),
    ],
)
def test_what_the_hub_answers_is_told_in_one_sentence(monkeypatch, error, facts):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", Mock(side_effect=error))
    refused("org/model", *facts, revision="v9")


@pytest.mark.parametrize("model", ["org/repo/deeper", "../model", "a b", "-x"])
def test_names_that_no_hub_model_can_have(model):
    refused(model, "Hub")


def cached_snapshot(cache: Path, commit: str) -> Path:
    """A model in the layout of the Hub's cache: a snapshot of links to blobs, and a branch that points to it."""
    repository = cache / "models--org--tiny"
    write_single(repository / "blobs", FLOATS)
    snapshot = repository / "snapshots" / commit
    snapshot.mkdir(parents=True)
    for file in ("config.json", "tokenizer.json", "model.safetensors"):
        (snapshot / file).symlink_to(repository / "blobs" / file)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    return snapshot


def test_cached_model_needs_no_connection(tmp_path, monkeypatch):
    commit = "0123456789abcdef0123456789abcdef01234567"
    snapshot = cached_snapshot(tmp_path, commit)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    for revision in (None, "main", commit):
        with open_base("org/tiny", revision=revision) as base:
            assert base.name == "org/tiny"
            assert base.revision == commit
            assert base.checkpoint.directory == snapshot
            assert base.checkpoint.read("a.weight").equal(FLOATS["a.weight"])
    refused("org/tiny", "HF_HUB_OFFLINE", revision="other")
    refused("org/other", "HF_HUB_OFFLINE")


def test_pickles_are_downloaded_only_where_there_are_no_safetensors(tmp_path, monkeypatch):
    """The first request leaves all other formats out; the second fetches pickles of the same commit."""
    snapshot = write_pickled(tmp_path / "abc", FLOATS, sharded=False)
    download = Mock(return_value=str(snapshot))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with open_base("org/tiny") as base:
        assert base.revision == "abc"
        assert base.checkpoint.read("a.weight").equal(FLOATS["a.weight"])
    first, second = download.call_args_list
    assert {"pytorch_model*.bin", "*.gguf", "onnx/*"} <= set(first.kwargs["ignore_patterns"])
    assert second.kwargs["revision"] == "abc"
    assert "pytorch_model*.bin" in second.kwargs["allow_patterns"]
    write_single(tmp_path / "other", FLOATS)
    (tmp_path / "other" / "model.safetensors").rename(snapshot / "model.safetensors")
    download.reset_mock()
    with open_base("org/tiny") as base:
        assert base.checkpoint.directory == snapshot
    download.assert_called_once()


# Quantized weights


def test_a_dequantized_base_computes_what_the_quantized_one_does(quantized_checkpoint: Path) -> None:
    tokens = torch.arange(10)[None]
    expected = AutoModelForCausalLM.from_pretrained(quantized_checkpoint)(tokens).logits
    with open_base(str(quantized_checkpoint), dtype=torch.float32, dequantize=True) as base:
        assert base.dequantized
        assert base.location is None, "no adapter for it could be loaded beside the quantized one"
        assert {tensor.dtype for tensor in base.checkpoint.tensors.values()} == {torch.float32}
        assert "quantization_config" not in base.checkpoint.config
        actual = AutoModelForCausalLM.from_pretrained(base.checkpoint.directory)(tokens).logits
        for file in ("tokenizer.json", "generation_config.json"):
            assert (base.checkpoint.directory / file).read_bytes() == (quantized_checkpoint / file).read_bytes()
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
    with open_base(str(quantized_checkpoint), dequantize=True) as base:
        assert {tensor.dtype for tensor in base.checkpoint.tensors.values()} == {torch.bfloat16}


def test_a_base_that_is_not_quantized_is_not_dequantized(tiny_checkpoint: Path) -> None:
    refused(tiny_checkpoint, "--dequantize", dequantize=True)


def test_a_method_that_cannot_be_undone_is_refused_by_name(tiny_checkpoint: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_checkpoint, tmp_path / "base")
    config = json.loads((tmp_path / "base/config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4, "group_size": 128, "dataset": "c4"}
    (tmp_path / "base/config.json").write_text(json.dumps(config))
    refused(tmp_path / "base", "--format adapter", dequantize=True)
