"""Ways in which a checkpoint can lie, each a function that changes a good one, a tiny Llama with its tokenizer."""

from __future__ import annotations

import io
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tests.helpers.checkpoint_files import INDEX, join_file, split_file

Attack = Callable[[Path], object]

WEIGHTS = "model.safetensors"
EDITED = "model.layers.1.mlp.down_proj.weight"
HUGE = 10**12


def change_json(path: Path, change: Callable[[Any], Any]) -> None:
    path.write_text(json.dumps(change(json.loads(path.read_text(encoding="utf-8")))), encoding="utf-8")


# Headers


def header(change: Callable[[dict], object]) -> Attack:
    """Writes what a function makes of the parsed header in its place; the function may change the header instead."""

    def attack(directory: Path) -> None:
        entries, data = split_file((directory / WEIGHTS).read_bytes())
        changed = change(entries)
        (directory / WEIGHTS).write_bytes(join_file(entries if changed is None else changed, data))

    return attack


def entry(**values: object) -> Attack:
    return header(lambda entries: entries[EDITED].update(values))


def length(count: int, *, sparse: int = 0) -> Attack:
    """Another length of the header, in a file with a hole of some bytes at its end."""

    def attack(directory: Path) -> None:
        with open(directory / WEIGHTS, "r+b") as stream:
            stream.write(count.to_bytes(8, "little"))
            stream.seek(0, os.SEEK_END)
            stream.truncate(stream.tell() + sparse)

    return attack


def contents(data: bytes, file: str = WEIGHTS) -> Attack:
    return lambda directory: (directory / file).write_bytes(data)


def renamed(name: str) -> Attack:
    return header(lambda entries: entries.update({name: entries.pop(EDITED)}))


def replaced_by_pipe(file: str) -> Attack:
    def attack(directory: Path) -> None:
        (directory / file).unlink()
        os.mkfifo(directory / file)

    return attack


def _overlapping(entries: dict) -> None:
    entries[EDITED]["data_offsets"] = entries["model.layers.1.mlp.up_proj.weight"]["data_offsets"]


def _in_order_of_bytes(entries: dict) -> list[str]:
    return sorted(entries.keys() - {"__metadata__"}, key=lambda name: entries[name]["data_offsets"])


def _beyond_the_end(entries: dict) -> None:
    last = entries[_in_order_of_bytes(entries)[-1]]
    last["data_offsets"][1] += 4 * 24 * 1000
    last["shape"] = [last["shape"][0] + 1000, *last["shape"][1:]]


def _key_twice(entries: dict) -> bytes:
    return json.dumps(entries).replace("{", f'{{"{EDITED}": {json.dumps(entries[EDITED])}, ', 1).encode()


HEADERS: dict[str, Attack] = {
    "offsets beyond the file": header(_beyond_the_end),
    "offsets far beyond the file": entry(data_offsets=[2**40, 2**40 + 3840]),
    "offsets that overlap": header(_overlapping),
    "offsets that are negative": entry(data_offsets=[-3840, 0]),
    "offsets that run backwards": entry(data_offsets=[3840, 0]),
    "offsets that wrap around": entry(data_offsets=[2**64 - 3840, 2**64]),
    "offsets of thousands of digits": header(
        lambda entries: json.dumps(entries).replace('"data_offsets": [', '"data_offsets": [' + "9" * 5000, 1).encode()
    ),
    "offsets that are no integers": entry(data_offsets=[0.5, 3840.5]),
    "offsets that are truth values": entry(data_offsets=[False, True]),
    "offsets that are text": entry(data_offsets=["0", "3840"]),
    "sizes whose product wraps around": entry(shape=[2**62, 2**62, 4]),
    "sizes of thousands of dimensions": entry(shape=[1] * 100_000),
    "sizes of dimensions without end": entry(shape=[2**62] * 50_000),
    "sizes that are negative": entry(shape=[-24, -40]),
    "sizes of another number of values": entry(shape=[24, 41]),
    "dtype of another size": entry(dtype="F64"),
    "dtype that does not exist": entry(dtype="F33"),
    "dtype that is an object": entry(dtype={"F32": 1}),
    "key that occurs twice": header(_key_twice),
    "entry that is missing": header(lambda entries: entries.pop(EDITED) and None),
    "entry with something more": entry(more=1),
    "entry that is null": header(lambda entries: entries.update({EDITED: None})),
    "metadata that are no text": header(lambda entries: entries.update(__metadata__={"format": 1})),
    "length beyond the file": length(2**40),
    "length that is negative": length(2**64 - 1),
    "length of gigabytes": length(2**32, sparse=2**33),
    "length within a long file": length(90_000_000, sparse=100_000_000),
    "length of nothing": length(0),
    "header that is deep": header(lambda entries: b"[" * 10_000),
    "header that is deep and closed": header(lambda entries: b'{"a":' * 500 + b"1" + b"}" * 500),
    "header of millions of values": header(lambda entries: b"[" + b"[]," * 10_000_000 + b"[]]"),
    "header of many lists": header(lambda entries: b"[" + b"[]," * 1_200_000 + b"[]]"),
    "header of many keys": header(
        lambda entries: b"{" + b",".join(b'"%x":0' % number for number in range(2_400_000)) + b"}"
    ),
    "header of a long text": header(lambda entries: '"\U0001f600'.encode() + b"a" * 60_000_000 + b'"'),
    "header that is not UTF-8": header(lambda entries: json.dumps(entries).encode("utf-16")),
    "header that is a list": header(lambda entries: list(entries)),
    "header that is no JSON": header(lambda entries: b"not JSON"),
    "name that moves the cursor": renamed("\x1b[2J\x1b[1;1H"),
    "name of many lines": renamed("weight\nError: all is well"),
    "name without end": renamed("a" * 1_000_000),
    "file that is empty": contents(b""),
    "file of a few bytes": contents(b"1234567"),
    "file that is a picture": contents(b"\x89PNG\r\n\x1a\n" + bytes(1000)),
    "file that is a pickle": lambda directory: torch.save({"a": torch.ones(2)}, directory / WEIGHTS),
    "file that is cut short": lambda directory: os.truncate(directory / WEIGHTS, 100_000),
    "file that goes on": lambda directory: os.truncate(directory / WEIGHTS, (directory / WEIGHTS).stat().st_size + 1),
}


# Names and links


def sharded(directory: Path) -> None:
    """Divides the one weight file into two, with an index."""
    tensors = load_file(directory / WEIGHTS)
    names = sorted(tensors)
    shards = {f"model-0000{part + 1}-of-00002.safetensors": names[part::2] for part in range(2)}
    for file, held in shards.items():
        save_file({name: tensors[name] for name in held}, directory / file, metadata={"format": "pt"})
    weight_map = {name: file for file, held in shards.items() for name in held}
    (directory / INDEX).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    (directory / WEIGHTS).unlink()


def index(change: Callable[[dict], object]) -> Attack:
    """Divides the checkpoint, and changes the weight map of its index."""

    def attack(directory: Path) -> None:
        sharded(directory)
        change_json(directory / INDEX, lambda whole: change(whole["weight_map"]) or whole)

    return attack


def named(file: object) -> Attack:
    """The index says that one tensor is in another file, which exists if it is beside the directory."""

    def attack(directory: Path) -> None:
        outside(directory)
        index(lambda weight_map: weight_map.update({EDITED: file}))(directory)

    return attack


def index_of(text: bytes) -> Attack:
    def attack(directory: Path) -> None:
        sharded(directory)
        (directory / INDEX).write_bytes(text)

    return attack


def outside(directory: Path) -> Path:
    """A folder beside the model with what somebody keeps there."""
    folder = directory.parent / "secrets"
    if not folder.exists():
        folder.mkdir()
        (folder / "key").write_text("a secret\n")
        (folder / WEIGHTS).write_bytes((directory / WEIGHTS).read_bytes())
        (folder / "config.json").write_bytes((directory / "config.json").read_bytes())
    return folder


def link(file: str, target: str) -> Attack:
    """Puts a link in the place of a file of the model. The target is relative to the folder of secrets."""

    def attack(directory: Path) -> None:
        secrets = outside(directory)
        if (directory / file).exists():
            (directory / file).unlink()
        (directory / file).symlink_to(secrets / target)

    return attack


def shard_link(directory: Path) -> None:
    secrets = outside(directory)
    sharded(directory)
    shard = directory / "model-00001-of-00002.safetensors"
    shard.rename(secrets / "shard")
    shard.symlink_to(Path("..", "secrets", "shard"))


def posing_as_the_cache(directory: Path) -> None:
    """A directory in the layout of the Hub's cache, whose folder of blobs is a link to somewhere else."""
    secrets = outside(directory)
    snapshot = directory / "models--org--tiny" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    for path in [path for path in directory.iterdir() if path.is_file()]:
        path.rename(snapshot / path.name)
    (directory / "models--org--tiny" / "blobs").symlink_to(secrets)
    (snapshot / "notes.txt").symlink_to(Path("..", "..", "blobs", "key"))
    moved = directory.rename(directory.with_name("moved"))
    directory.symlink_to(moved / "models--org--tiny" / "snapshots" / "abc")


def deep_folders(directory: Path) -> None:
    (directory / "/".join(["d"] * 300)).mkdir(parents=True)


def without_a_shard(directory: Path) -> None:
    sharded(directory)
    (directory / "model-00002-of-00002.safetensors").unlink()


NAMES_AND_LINKS: dict[str, Attack] = {
    "index that leads up": named("../secrets/model.safetensors"),
    "index with an absolute path": named("/etc/passwd"),
    "index that leads down": named("sub/model.safetensors"),
    "index with a backslash": named("..\\secrets\\model.safetensors"),
    "index with a null character": named("model\0.safetensors"),
    "index that names the directory": named("."),
    "index that names a number": named(1),
    "index that names a list": named(["model.safetensors"]),
    "index that names nothing": named(""),
    "index that names config.json": named("config.json"),
    "index that names a device": named("/dev/zero"),
    "index that names a missing shard": named("model-00003-of-00003.safetensors"),
    "index that names the wrong shard": index(
        lambda shards: shards.update({EDITED: min(set(shards.values()) - {shards[EDITED]})})
    ),
    "index that names a tensor too many": index(lambda shards: shards.update(more=shards["lm_head.weight"])),
    "index without a map": index_of(b"{}"),
    "index that is a list": index_of(b"[]"),
    "index that is deep": index_of(b"[" * 100_000),
    "index that is not UTF-8": index_of(b'{"weight_map": {"\xff": "model.safetensors"}}'),
    "index with a key twice": index_of(b'{"weight_map": {"a": "b.safetensors", "a": "c.safetensors"}}'),
    "index of many names": index_of(
        b'{"weight_map":{' + b",".join(b'"%x":"%x"' % (number, number) for number in range(2_000_000)) + b"}}"
    ),
    "index larger than any": index_of(b" " * 70_000_000),
    "index that is a pipe": lambda directory: (sharded(directory), replaced_by_pipe(INDEX)(directory)),
    "shard that is missing": without_a_shard,
    "shard that is a link out": shard_link,
    "weights that are a link out": link(WEIGHTS, WEIGHTS),
    "weights that are a pipe": replaced_by_pipe(WEIGHTS),
    "weights that are a device": link(WEIGHTS, "/dev/zero"),
    "config that is a link out": link("config.json", "config.json"),
    "config that is a pipe": replaced_by_pipe("config.json"),
    "secret that is linked to": link("notes.txt", "key"),
    "secret in a linked folder": link("notes", "."),
    "tokenizer that is a link out": link("tokenizer.json", "key"),
    "link to a folder above": link("up", ".."),
    "link to itself": lambda directory: (directory / "loop").symlink_to(directory / "loop"),
    "link that leads nowhere": lambda directory: (directory / "lost").symlink_to("nowhere"),
    "folder of blobs that is a link": posing_as_the_cache,
    "pipe beside the model": lambda directory: os.mkfifo(directory / "pipe"),
    "folders without end": deep_folders,
    "adapter that takes the model's place": contents(
        b'{"base_model_name_or_path": "../secrets"}', "adapter_config.json"
    ),
}


# Configs


def config(**values: object) -> Attack:
    return lambda directory: change_json(directory / "config.json", lambda whole: whole | values)


def nested(depth: int) -> dict:
    value: dict = {}
    for _ in range(depth):
        value = {"a": value}
    return value


CONFIGS: dict[str, Attack] = {
    "config that is missing": lambda directory: (directory / "config.json").unlink(),
    "config that is empty": contents(b"", "config.json"),
    "config that is a list": contents(b"[]", "config.json"),
    "config that is deep": contents(b'{"a":' * 5000 + b"1" + b"}" * 5000, "config.json"),
    "config that is nested": config(extra=nested(200)),
    "config larger than any": contents(b'{"a": "' + b"a" * 70_000_000 + b'"}', "config.json"),
    "config of millions of values": contents(b'{"a": [' + b"[]," * 5_000_000 + b"[]]}", "config.json"),
    "config that is not UTF-8": contents(b'{"model_type": "\xff\xfe"}', "config.json"),
    "config of null characters": contents(bytes(1000), "config.json"),
    "config of another architecture": config(model_type="gpt2", architectures=["GPT2LMHeadModel"]),
    "config of another decoder": config(model_type="phi3", architectures=["Phi3ForCausalLM"]),
    "config of no language model": config(model_type="vit", architectures=["ViTModel"]),
    "config of an encoder": config(model_type="t5", architectures=["T5ForConditionalGeneration"]),
    "config of an unknown architecture": config(model_type="nonesuch"),
    "config without an architecture": lambda directory: change_json(
        directory / "config.json", lambda whole: {key: value for key, value in whole.items() if key != "model_type"}
    ),
    "config whose architecture is a number": config(model_type=7),
    "config whose architecture is a path": config(model_type="../../secrets"),
    "layers without end": config(num_hidden_layers=10**9),
    "layers by the hundred thousand": config(num_hidden_layers=300_000),
    "layers of an unstated kind": config(num_hidden_layers=900_000, model_type="qwen2"),
    "layers that are negative": config(num_hidden_layers=-1),
    "layers that are text": config(num_hidden_layers="four"),
    "layers that are null": config(num_hidden_layers=None),
    "layers that are more than stored": config(num_hidden_layers=6),
    "layers of no number": config(num_hidden_layers=float("nan")),
    "hidden size without end": config(hidden_size=HUGE),
    "hidden size of another model": config(hidden_size=48),
    "hidden size of zero": config(hidden_size=0),
    "MLP without end": config(intermediate_size=HUGE),
    "MLP of another model": config(intermediate_size=44),
    "vocabulary without end": config(vocab_size=HUGE),
    "heads of zero": config(num_attention_heads=0),
    "heads that are negative": config(num_attention_heads=-4),
    "positions that are text": config(max_position_embeddings="many"),
    "activation that does not exist": config(hidden_act="__import__('os').abort"),
    "rope that is text": config(rope_scaling="yes", rope_parameters="yes"),
    "quantized by nobody": config(quantization_config={"quant_method": "nonesuch"}),
    "quantized by a number": config(quantization_config=4),
    "quantized by a module": config(quantization_config={"quant_method": "os.system"}),
    "dtype that is a function": config(dtype="load", torch_dtype="load"),
    "dtype that is a list": config(dtype=["float32"], torch_dtype=["float32"]),
    "weights named elsewhere": config(transformers_weights="../secrets/model.safetensors"),
    "weights named by a list": config(transformers_weights=["model.safetensors"]),
    "tokenizer that is missing": lambda directory: [path.unlink() for path in directory.glob("tokenizer*")],
    "tokenizer that is no JSON": contents(b"{", "tokenizer.json"),
    "tokenizer that is deep": contents(b"[" * 100_000, "tokenizer.json"),
    "tokenizer of no kind": contents(
        b'{"model": {"type": "BPE", "vocab": {"a": -1}, "merges": [["x", "y"]]}}', "tokenizer.json"
    ),
    "tokenizer config that is a list": contents(b"[]", "tokenizer_config.json"),
    "tokenizer config that is deep": contents(b"[" * 100_000, "tokenizer_config.json"),
}


# Tensors


def tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Attack:
    def attack(directory: Path) -> None:
        held = load_file(directory / WEIGHTS)
        change(held)
        save_file(held, directory / WEIGHTS, metadata={"format": "pt"})

    return attack


def first_value(name: str, value: float) -> Attack:
    return tensors(lambda held: held[name].view(-1)[:1].fill_(value))


TENSORS: dict[str, Attack] = {
    "edited weight of another shape": tensors(lambda held: held.update({EDITED: torch.ones(24, 41)})),
    "edited weight turned round": tensors(lambda held: held.update({EDITED: held[EDITED].T.contiguous()})),
    "edited weight of three dimensions": tensors(lambda held: held.update({EDITED: held[EDITED][None].contiguous()})),
    "edited weight of no values": tensors(lambda held: held.update({EDITED: torch.ones(0, 2**40)})),
    "edited weight of integers": tensors(lambda held: held.update({EDITED: held[EDITED].to(torch.int8)})),
    "edited weight that is missing": tensors(lambda held: held.pop(EDITED)),
    "other weight of another shape": tensors(lambda held: held.update({"model.norm.weight": torch.ones(25)})),
    "other weight that is missing": tensors(lambda held: held.pop("model.layers.0.self_attn.q_proj.weight")),
    "edited weight with a NaN": first_value(EDITED, float("nan")),
    "edited weight with an infinity": first_value(EDITED, float("-inf")),
    "other weight with a NaN": first_value("model.layers.0.self_attn.q_proj.weight", float("nan")),
    "other weight with an infinity": first_value("model.embed_tokens.weight", float("inf")),
}


# Pickles


def pickled(make: Callable[[Path], object]) -> Attack:
    """Puts `pytorch_model.bin` in the place of the safetensors file."""

    def attack(directory: Path) -> None:
        target = directory / "pytorch_model.bin"
        made = make(directory)
        if isinstance(made, bytes):
            target.write_bytes(made)
        (directory / WEIGHTS).unlink()

    return attack


class RunsCode:
    """A pickle of this runs a function of its author's choice, which leaves a trace beside the model."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return self.function, self.arguments


def _runs(function: Callable[..., object], *arguments: object, old: bool = False) -> Attack:
    def make(directory: Path) -> None:
        values = tuple(str(directory.parent / "trace") if value == "TRACE" else value for value in arguments)
        torch.save(
            {"a": torch.ones(2), "b": RunsCode(function, *values)},
            directory / "pytorch_model.bin",
            _use_new_zipfile_serialization=not old,
        )

    return pickled(make)


def _archive(program: bytes, **storages: bytes) -> bytes:
    """A file of torch's format with a program of one's own."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("archive/data.pkl", program)
        archive.writestr("archive/byteorder", b"little")
        for name, data in storages.items():
            archive.writestr(f"archive/data/{name}", data)
        archive.writestr("archive/version", b"3\n")
    return stream.getvalue()


def _endless_tuples() -> bytes:
    """A key that is a tuple of twice a tuple of twice a tuple …: its hash would take for ever."""
    program = b"\x80\x02}(" + b")" + b"q\x00"
    for step in range(60):
        program += b"h" + bytes([step]) + b"\x86q" + bytes([step + 1])
    return _archive(program + b"K\x01u.")


def _tensor_of_shape(directory: Path, shape: tuple[int, ...], stride: tuple[int, ...]) -> None:
    torch.save({"a": torch.ones(1).as_strided(shape, stride)}, directory / "pytorch_model.bin")


def _compressed(directory: Path) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(500_000_000))
        archive.writestr("archive/version", b"3\n")
    return stream.getvalue()


def _many_files(directory: Path) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("archive/data.pkl", b".")
        for number in range(150_000):
            archive.writestr(f"archive/data/{number:040}", b"")
    return stream.getvalue()


def _cut(directory: Path) -> bytes:
    torch.save(load_file(directory / WEIGHTS), directory / "pytorch_model.bin")
    data = (directory / "pytorch_model.bin").read_bytes()
    return data[: len(data) // 2]


def _missing_storage(directory: Path) -> bytes:
    torch.save({"a": torch.ones(64)}, directory / "pytorch_model.bin")
    with zipfile.ZipFile(directory / "pytorch_model.bin") as archive:
        program = next(archive.read(name) for name in archive.namelist() if name.endswith("data.pkl"))
    return _archive(program, **{"0": bytes(8)})


def _pickle_index(weight_map: object) -> Attack:
    def attack(directory: Path) -> None:
        outside(directory)
        torch.save(load_file(directory / WEIGHTS), directory.parent / "secrets" / "weights.bin")
        torch.save(load_file(directory / WEIGHTS), directory / "weights.bin")
        (directory / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
        (directory / WEIGHTS).unlink()

    return attack


def _pickle_link(directory: Path) -> None:
    torch.save(load_file(directory / WEIGHTS), outside(directory) / "weights.bin")
    (directory / "pytorch_model.bin").symlink_to(outside(directory) / "weights.bin")


PICKLES: dict[str, Attack] = {
    "pickle that runs a program": _runs(os.system, "touch TRACE"),
    "pickle that opens a file": _runs(open, "TRACE", "w"),
    "pickle that evaluates": _runs(eval, "__import__('os').abort()"),
    "pickle of old that runs a program": _runs(os.system, "touch TRACE", old=True),
    "pickle that loads another": _runs(pickle.loads, b"cos\nabort\n(tR."),
    "pickle that takes memory": _runs(bytearray, 8 * 10**9),
    "pickle of old that takes memory": _runs(bytearray, 8 * 10**9, old=True),
    "pickle that never ends": pickled(lambda _: _endless_tuples()),
    "pickle of millions of lists": pickled(lambda _: _archive(b"\x80\x02" + b"]" * 30_000_000 + b".")),
    "pickle that is deep": pickled(lambda _: _archive(b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".")),
    "pickle in another protocol": pickled(lambda _: _archive(pickle.dumps({"a": RunsCode(os.abort)}, protocol=4))),
    "pickle of an extension": pickled(lambda _: _archive(b"\x80\x02\x82\x01.")),
    "pickle by itself": pickled(lambda _: pickle.dumps({"a": 1})),
    "pickle of no program": pickled(lambda _: _archive(b"")),
    "pickle of numbers": pickled(lambda directory: torch.save({"a": 1}, directory / "pytorch_model.bin")),
    "pickle of a list": pickled(lambda directory: torch.save([torch.ones(1)], directory / "pytorch_model.bin")),
    "pickle of one tensor": pickled(lambda directory: torch.save(torch.ones(1), directory / "pytorch_model.bin")),
    "pickle of terabytes of one value": pickled(lambda directory: _tensor_of_shape(directory, (2**20, 2**20), (0, 0))),
    "pickle of a sparse tensor": pickled(
        lambda directory: torch.save({"a": torch.ones(2, 2).to_sparse()}, directory / "pytorch_model.bin")
    ),
    "pickle of more values than stored": pickled(_missing_storage),
    "pickle that is compressed": pickled(_compressed),
    "pickle of many files": pickled(_many_files),
    "pickle that is cut short": pickled(_cut),
    "pickle that is empty": pickled(lambda _: b""),
    "pickle of nothing but noise": pickled(lambda _: bytes(range(256)) * 1000),
    "pickle that is a link out": pickled(_pickle_link),
    "pickles outside": _pickle_index({EDITED: "../secrets/weights.bin"}),
    "pickles at an absolute path": _pickle_index({EDITED: "/etc/passwd"}),
    "pickles that are missing": _pickle_index({EDITED: "none.bin"}),
    "pickles of other tensors": _pickle_index({"more": "weights.bin"}),
    "pickles by a list": _pickle_index(["weights.bin"]),
    "pickles by number": _pickle_index({EDITED: 1}),
}

# What is wrong with files whatever is in them: an adapter beside the weights is a file like any other.
OF_FILES = sorted((HEADERS.keys() | NAMES_AND_LINKS.keys()) - {"adapter that takes the model's place"})
ALL = HEADERS | NAMES_AND_LINKS | CONFIGS | TENSORS | PICKLES
