"""Ways to change a finished output: its files, and single numbers of its tensors, with or without its digests."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from sea_export.files.digests import file_digest
from sea_export.model.checkpoint import Checkpoint
from tests.helpers.checkpoint_files import join_file, split_file

__all__ = [
    "Tampering",
    "another_order",
    "change_json",
    "forged",
    "one_unit",
    "other_metadata",
    "tensors_changed",
]

Tampering = Callable[[Path], None]
"""Changes an output in place."""


def change_json(file: str, **entries: object) -> Tampering:
    """Changes entries of a JSON file."""

    def change(output: Path) -> None:
        contents = json.loads((output / file).read_text(encoding="utf-8"))
        (output / file).write_text(json.dumps({**contents, **entries}), encoding="utf-8")

    return change


def forged(output: Path) -> None:
    """Brings the digests of the manifest up to date, as somebody would who knows of them."""
    manifest = json.loads((output / "sea_export.json").read_text(encoding="utf-8"))
    files = sorted(path.relative_to(output).as_posix() for path in output.rglob("*") if path.is_file())
    manifest["files"] = {name: file_digest(output / name) for name in files if name != "sea_export.json"}
    (output / "sea_export.json").write_text(json.dumps(manifest), encoding="utf-8")


def tensors_changed(change: Callable[[dict[str, torch.Tensor]], None], *, of: str) -> Tampering:
    """Changes the tensors of the file that holds a tensor, and leaves its metadata as they are."""

    def tamper(output: Path) -> None:
        path = output / Checkpoint.open(output).tensors[of].file
        tensors = load_file(path)
        with safe_open(path, "pt") as stored:
            metadata = stored.metadata()
        change(tensors)
        save_file(tensors, path, metadata)

    return tamper


def one_unit(name: str, place: tuple[int, ...] = (3, 5)) -> Tampering:
    """Moves one element of a tensor to the next larger number of its dtype."""

    def move(tensors: dict[str, torch.Tensor]) -> None:
        bits = tensors[name].view(torch.int32 if tensors[name].itemsize == 4 else torch.int16)
        bits[place] += 1

    return tensors_changed(move, of=name)


def another_order(name: str) -> Tampering:
    """Stores the tensors of the file that holds a tensor in the opposite order."""

    def reverse(output: Path) -> None:
        path = output / Checkpoint.open(output).tensors[name].file
        header, data = split_file(path.read_bytes())
        metadata = header.pop("__metadata__", {})
        entries = sorted(header.items(), key=lambda entry: -entry[1]["data_offsets"][0])
        pieces, position = [], 0
        for _, entry in entries:
            start, end = entry["data_offsets"]
            pieces.append(data[start:end])
            entry["data_offsets"] = [position, position + end - start]
            position += end - start
        path.write_bytes(join_file({"__metadata__": metadata, **dict(entries)}, b"".join(pieces)))

    return reverse


def other_metadata(name: str) -> Tampering:
    """Adds an entry to the metadata of the file that holds a tensor."""

    def add(output: Path) -> None:
        path = output / Checkpoint.open(output).tensors[name].file
        save_file(load_file(path), path, {"format": "pt", "license": "none"})

    return add
