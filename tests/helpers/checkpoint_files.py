"""Small checkpoint directories for the tests of what happens on disk."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save, save_file

INDEX = "model.safetensors.index.json"


def tensors_of_many_dtypes(seed: int = 0) -> dict[str, torch.Tensor]:
    """Tensors of every kind that checkpoints hold, a scalar and an empty one among them."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(6, 10, generator=generator)
    return {
        "layers.0.down.weight": weight.bfloat16(),
        "layers.0.norm.weight": weight[0].clone(),
        "layers.1.down.weight": (2 * weight).bfloat16(),
        "layers.1.half": weight.half(),
        "layers.1.double": weight.double(),
        "scale": torch.tensor(1.5),
        "empty": torch.empty(0, 4),
        "packed": (weight > 0).to(torch.uint8),
        "eighth": weight.to(torch.float8_e4m3fn),
        "mask": weight > 0,
    }


def write_single(directory: Path, tensors: dict[str, torch.Tensor]) -> Path:
    """A checkpoint of one file, with the side files that every model has."""
    directory.mkdir(parents=True, exist_ok=True)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    write_side_files(directory)
    return directory


def write_sharded(directory: Path, tensors: dict[str, torch.Tensor], shards: int = 3) -> Path:
    """A checkpoint of several shards with an index. The header of the second shard is valid but unusual:
    padded with spaces to an odd length, without metadata, its keys not in the order of the bytes.
    """
    directory.mkdir(parents=True, exist_ok=True)
    names = list(tensors)
    weight_map = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        held = {name: tensors[name] for name in names[shard::shards]}
        weight_map |= dict.fromkeys(held, file)
        contents = save(held, metadata={"format": "pt"})
        (directory / file).write_bytes(with_odd_header(contents) if shard == 1 else contents)
    total = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    (directory / INDEX).write_text(json.dumps(index, indent=2) + "\n")
    write_side_files(directory)
    return directory


def write_side_files(directory: Path) -> None:
    (directory / "config.json").write_text('{"model_type": "llama",   "hidden_size": 10, "nested": {"a": 1}}')
    (directory / "tokenizer.json").write_bytes(b'{"version": "1.0"}\r\n')
    (directory / "custom" / "deep").mkdir(parents=True)
    (directory / "custom" / "deep" / "code.py").write_text("x = 1\n")


def with_odd_header(contents: bytes) -> bytes:
    """The same safetensors file with a header that only just is one."""
    header, data = split_file(contents)
    header.pop("__metadata__")
    text = json.dumps(dict(reversed(header.items())), indent=1).encode()
    text += b" " * (1 if len(text) % 2 == 0 else 2)
    return len(text).to_bytes(8, "little") + text + data


def split_file(contents: bytes) -> tuple[dict, bytes]:
    """The parsed header and the tensor bytes of a safetensors file."""
    length = int.from_bytes(contents[:8], "little")
    return json.loads(contents[8 : 8 + length]), contents[8 + length :]


def join_file(header: dict | bytes, data: bytes) -> bytes:
    """A safetensors file of any header, true or not."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def contents_of(directory: Path) -> dict[str, bytes]:
    """Every file of a directory with its bytes."""
    return {
        path.relative_to(directory).as_posix(): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }
