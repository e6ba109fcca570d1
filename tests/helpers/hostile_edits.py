"""Ways in which an edit on disk can be wrong, each a function that changes a good one, and wrong manifests."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tests.helpers.hostile_checkpoints import Attack, change_json

TENSORS, DESCRIPTION, MANIFEST = "sea_edit.safetensors", "sea_edit.json", "sea_export.json"


def described(change: Callable[[dict], object]) -> Attack:
    """Changes the parsed description, or replaces it by what the function gives."""

    def apply(whole: dict) -> Any:
        changed = change(whole)
        return whole if changed is None else changed

    return lambda directory: change_json(directory / DESCRIPTION, apply)


def number(name: str, value: object) -> Attack:
    return described(lambda whole: whole["layers"]["1.mlp"][0].update({name: value}))


def place(name: str) -> Attack:
    """Calls a place of the edit something else, in both files."""

    def attack(directory: Path) -> None:
        described(lambda whole: whole["layers"].update({name: whole["layers"].pop("1.mlp")}))(directory)
        held = load_file(directory / TENSORS)
        save_file({key.replace("1.mlp", name): value for key, value in held.items()}, directory / TENSORS)

    return attack


def provenance(**values: object) -> Attack:
    return described(lambda whole: whole["provenance"].update(values))


def tensor(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Attack:
    def attack(directory: Path) -> None:
        held = load_file(directory / TENSORS)
        key = f"1.mlp.0.{name}"
        save_file({**held, key: change(held.get(key, torch.ones(24))).contiguous()}, directory / TENSORS)

    return attack


def text(data: bytes, file: str = DESCRIPTION) -> Attack:
    return lambda directory: (directory / file).write_bytes(data)


def of_size(size: int) -> Attack:
    def attack(directory: Path) -> None:
        held = load_file(directory / TENSORS)
        wide = {
            key: torch.nn.functional.pad(value, (0, 0, 0, size - 24) if value.ndim == 2 else (0, size - 24))
            for key, value in held.items()
        }
        save_file({key: value.contiguous() for key, value in wide.items()}, directory / TENSORS)

    return attack


def linked(file: str) -> Attack:
    def attack(directory: Path) -> None:
        elsewhere = directory.parent / "elsewhere"
        elsewhere.mkdir()
        (directory / file).rename(elsewhere / file)
        (directory / file).symlink_to(elsewhere / file)

    return attack


def _pipe(directory: Path) -> None:
    (directory / DESCRIPTION).unlink()
    os.mkfifo(directory / DESCRIPTION)


def _deep() -> bytes:
    return b'{"format_version": 1, "layers": ' + b"[" * 50_000 + b"]" * 50_000 + b"}"


# What is wrong whatever the base is.
EDITS: dict[str, Attack] = {
    "description that is missing": lambda directory: (directory / DESCRIPTION).unlink(),
    "description that is empty": text(b""),
    "description that is a list": text(b"[]"),
    "description that is deep": text(_deep()),
    "description larger than any": text(b'{"a": "' + b"a" * 70_000_000 + b'"}'),
    "description of millions of values": text(b'{"layers": [' + b"{}," * 5_000_000 + b"{}]}"),
    "description that is not UTF-8": text(b'{"format_version": 1, "layers": "\xff"}'),
    "description with a key twice": text(b'{"format_version": 1, "format_version": 1}'),
    "description that is a pipe": _pipe,
    "description that is a link out": linked(DESCRIPTION),
    "version of text": described(lambda whole: whole | {"format_version": "1\x1b[2J"}),
    "layers that are a list": described(lambda whole: whole | {"layers": [1]}),
    "layers of numbers": described(lambda whole: whole | {"layers": {"1.mlp": [1]}}),
    "layers that are nothing": described(lambda whole: whole | {"layers": {}}),
    "layer of no edit": described(lambda whole: whole | {"layers": {"1.mlp": []}}),
    "layer that is negative": place("-1.mlp"),
    "layer of thousands of digits": place("9" * 5000 + ".mlp"),
    "layer in other digits": place("\u0661.mlp"),
    "layer written otherwise": place("01.mlp"),
    "component of nobody's": place("1.norm"),
    "number that is NaN": number("strength", float("nan")),
    "number that is infinite": number("identity", float("inf")),
    "number without end": number("strength", 10**400),
    "number that is text": number("strength", "1"),
    "number that is true": number("identity", True),
    "number that is null": number("strength", None),
    "number that is a list": number("signature", [1]),
    "number of nobody's": number("volume", 11),
    "tensor among the numbers": number("positive", [[1.0]]),
    "feature function of nobody's": number("feature_function", "exec"),
    "feature function of a list": number("feature_function", ["tanh"]),
    "length scale of zero": number("length_scale", 0),
    "projections of nobody's": number("projections", "none"),
    "normalization of nobody's": number("normalization", "../.."),
    "provenance that is a list": described(lambda whole: whole | {"provenance": []}),
    "base that is text": provenance(base="org/tiny"),
    "base without a name": provenance(base={}),
    "base whose name is a list": provenance(base={"name": ["org/tiny"]}),
    "base with weights of numbers": provenance(base={"name": "org/tiny", "weights": {"a": 1}}),
    "base with weights in a list": provenance(base={"name": "org/tiny", "weights": ["a"]}),
    "demonstrations that are a list": provenance(demonstrations=[1]),
    "demonstrations without a digest": provenance(demonstrations={"count": 1}),
    "options that are a list": provenance(options=[1]),
    "tuning that is a list": provenance(tuning=[1]),
    "tuning of no rows": provenance(tuning={"benchmark": "truthfulqa", "metric": "MC2", "pick": "best"}),
    "tensors that are missing": lambda directory: (directory / TENSORS).unlink(),
    "tensors that are empty": text(b"", TENSORS),
    "tensors that are a pickle": lambda directory: torch.save({"a": torch.ones(1)}, directory / TENSORS),
    "tensors that are cut short": lambda directory: os.truncate(directory / TENSORS, 2000),
    "tensors that are a link out": linked(TENSORS),
    "tensor with a NaN": tensor("positive", lambda value: value * float("nan")),
    "tensor with an infinity": tensor("scale", lambda value: value / 0),
    "tensor of another dtype": tensor("positive", lambda value: value.to(torch.int32)),
    "tensor of half precision": tensor("scale", torch.Tensor.half),
    "tensor of three dimensions": tensor("positive", lambda value: value[None]),
    "tensor of one dimension": tensor("positive", lambda value: value[:, 0]),
    "tensor of another size": tensor("scale", lambda value: value[1:]),
    "tensor of more directions than features": tensor("positive", lambda value: torch.ones(24, 25)),
    "tensor of endless emptiness": tensor("positive", lambda value: torch.ones(2**40, 0)),
    "tensor of no features": tensor("positive", lambda value: torch.ones(0, 0)),
    "tensor of nobody's": tensor("more", lambda value: value),
    "spectrum that is a matrix": tensor("positive_values", lambda value: value[None]),
}

# What is wrong beside a tiny Llama of 4 layers and 24 features.
FOREIGN_EDITS: dict[str, Attack] = {
    "layer that the base does not have": place("4.mlp"),
    "layer far beyond the base's": place("999999.mlp"),
    "more features than the base's": of_size(25),
    "thousands of features more": of_size(20_000),
    "base of other weights": provenance(base={"name": "org/tiny", "weights": {"model.safetensors": "0" * 64}}),
    "options of nobody's": provenance(demonstrations={"count": 2, "sha256": "0"}, options={"layers": 1}),
}


def manifest(change: Callable[[dict], object]) -> Attack:
    def apply(whole: dict) -> Any:
        changed = change(whole)
        return whole if changed is None else changed

    return lambda directory: change_json(directory / MANIFEST, apply)


def _linked_manifest(directory: Path) -> None:
    target = directory.parent / "profile"
    (directory / MANIFEST).rename(target)
    (directory / MANIFEST).symlink_to(target)


MANIFESTS: dict[str, Attack] = {
    "manifest that is missing": lambda directory: (directory / MANIFEST).unlink(),
    "manifest that is a list": text(b"[]", MANIFEST),
    "manifest that is empty": text(b"{}", MANIFEST),
    "manifest that is deep": text(b"[" * 100_000, MANIFEST),
    "manifest larger than any": text(b" " * 70_000_000 + b"{}", MANIFEST),
    "manifest that is not UTF-8": text(b'{"a": "\xff"}', MANIFEST),
    "manifest that is a link out": _linked_manifest,
    "manifest of a later version": manifest(lambda whole: whole.update(manifest_version=[2])),
    "format of nobody's": manifest(lambda whole: whole.update(format="pickle")),
    "format that is a list": manifest(lambda whole: whole.update(format=["merged"])),
    "format of another export": manifest(lambda whole: whole.update(format="adapter")),
    "adapter of text": manifest(lambda whole: whole.update(format="adapter", adapter="yes")),
    "adapter of negative rank": manifest(lambda whole: whole.update(format="adapter", adapter={"rank_cap": -1})),
    "base that is text": manifest(lambda whole: whole.update(base="org/tiny")),
    "base without a name": manifest(lambda whole: whole["base"].pop("name") and None),
    "base whose dtype is a function": manifest(lambda whole: whole["base"].update(dtype="load")),
    "base whose dtype is a list": manifest(lambda whole: whole["base"].update(dtype=["float32"])),
    "base of a numbered revision": manifest(lambda whole: whole["base"].update(revision=1)),
    "base perhaps dequantized": manifest(lambda whole: whole["base"].update(dequantized="no")),
    "files that are a list": manifest(lambda whole: whole.update(files=["a"])),
    "files that lead up": manifest(lambda whole: whole.update(files={"../secret": "0"})),
    "files at an absolute path": manifest(lambda whole: whole.update(files={"/etc/passwd": "0"})),
    "files of numbers": manifest(lambda whole: whole.update(files={"a": 1})),
    "link beside it": lambda directory: (directory / "notes").symlink_to("/etc"),
    "edit that is missing": lambda directory: (directory / "sea_edit" / DESCRIPTION).unlink(),
    "edit that is damaged": text(b"{", f"sea_edit/{DESCRIPTION}"),
    "weights that are cut short": lambda directory: os.truncate(directory / "model.safetensors", 1000),
    "weights that are a pipe": lambda directory: (
        (directory / "model.safetensors").unlink(),
        os.mkfifo(directory / "model.safetensors"),
    ),
}

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def adapter(**values: object) -> Attack:
    return lambda directory: change_json(directory / ADAPTER_CONFIG, lambda whole: whole | values)


def adapter_tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Attack:
    def attack(directory: Path) -> None:
        held = load_file(directory / ADAPTER_WEIGHTS)
        change(held)
        save_file(held, directory / ADAPTER_WEIGHTS)

    return attack


def _pickled_adapter(directory: Path) -> None:
    torch.save(load_file(directory / ADAPTER_WEIGHTS), directory / "adapter_model.bin")
    (directory / ADAPTER_WEIGHTS).unlink()


ADAPTERS: dict[str, Attack] = {
    "adapter config that is missing": lambda directory: (directory / ADAPTER_CONFIG).unlink(),
    "adapter config that is a list": text(b"[]", ADAPTER_CONFIG),
    "adapter config that is deep": text(b"[" * 100_000, ADAPTER_CONFIG),
    "adapter of another kind": adapter(peft_type="PROMPT_TUNING"),
    "adapter of a module": adapter(auto_mapping={"base_model_class": "system", "parent_library": "os"}),
    "adapter of another rank": adapter(r=10**9, rank_pattern={}),
    "adapter on everything": adapter(target_modules="all-linear"),
    "adapter tensors that are missing": lambda directory: (directory / ADAPTER_WEIGHTS).unlink(),
    "adapter tensors in a pickle": _pickled_adapter,
    "adapter tensors that are cut short": lambda directory: os.truncate(directory / ADAPTER_WEIGHTS, 500),
    "adapter tensors of another name": adapter_tensors(lambda held: held.update(more=held.popitem()[1])),
    "adapter tensors of another shape": adapter_tensors(lambda held: held.update({min(held): torch.ones(1, 1)})),
}
