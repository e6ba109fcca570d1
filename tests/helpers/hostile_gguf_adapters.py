"""Ways in which the files of `--format gguf-adapter` can be wrong, each a function that changes a good output.

The output is a LoRA and a control vector, or a LoRA and a Modelfile, of a tiny Llama of 24 features.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.helpers.changed_gguf import join_gguf, split_gguf
from tests.helpers.hostile_checkpoints import Attack, contents, replaced_by_pipe
from tests.helpers.hostile_edits import linked, manifest

__all__ = ["GGUF_FILES", "GGUF_MANIFESTS", "HUGE_BYTES", "sparse"]

LORA, CONTROL_VECTOR, MODELFILE = "sea-lora.gguf", "sea-control-vector.gguf", "Modelfile"
HUGE_BYTES = 40 * 10**9
# What is read by every command that compares digests, so that it takes seconds and not minutes.
LARGE_BYTES = 2 * 10**9


def header(change: Callable[[dict[str, Any]], object], file: str = LORA) -> Attack:
    """Changes what the header of a file says, and leaves its tensors as they are."""

    def attack(directory: Path) -> None:
        told, data = split_gguf((directory / file).read_bytes())
        change(told)
        (directory / file).write_bytes(join_gguf(told, data))

    return attack


def record(place: int, value: object, file: str = LORA) -> Attack:
    """Changes the name (0), the sizes (1), the type (2) or the offset (3) of the first tensor."""
    return header(lambda told: told["records"][0].__setitem__(place, value), file)


def entry(key: str, value: object, kind: int | None = None, file: str = LORA) -> Attack:
    """Changes the value of an entry of the metadata, and its type."""

    def change(told: dict[str, Any]) -> None:
        found = next(one for one in told["entries"] if one[0] == key)
        found[1:] = [found[1] if kind is None else kind, value]

    return header(change, file)


def sparse(size: int, *, values: int | None = None, file: str = LORA) -> Attack:
    """A file with a hole up to a size. Its first tensor is a row of so many values, if it says how many."""

    def attack(directory: Path) -> None:
        if values is not None:
            told, _ = split_gguf((directory / file).read_bytes())
            told["records"] = [[told["records"][0][0], [values], 0, 0]]
            (directory / file).write_bytes(join_gguf(told | {"tensor_count": 1}, b""))
        os.truncate(directory / file, size)

    return attack


def cut(share: float, file: str = LORA) -> Attack:
    return lambda directory: os.truncate(directory / file, int((directory / file).stat().st_size * share))


def _twice(told: dict[str, Any]) -> None:
    told["records"][1][0] = told["records"][0][0]


# Of these every command that reads the files has to say something.
GGUF_FILES: dict[str, Attack] = {
    "file that is empty": contents(b"", LORA),
    "file of another kind": contents(b"GGML" * 50, LORA),
    "file that is missing": lambda directory: (directory / LORA).unlink(),
    "file that is a pipe": replaced_by_pipe(LORA),
    "file that is a link out": linked(LORA),
    "file cut in its header": cut(0.01),
    "file cut in its tensors": cut(0.7),
    "version of nobody's": header(lambda told: told.update(version=7)),
    "version in the other byte order": header(lambda told: told.update(version=3 << 24)),
    "tensors without end": header(lambda told: told.update(tensor_count=2**63)),
    "entries without end": header(lambda told: told.update(entry_count=2**63)),
    "fewer tensors than are there": header(lambda told: told.update(tensor_count=1)),
    "no tensors": header(lambda told: told.update(tensor_count=0, records=[])),
    "offset beyond the file": record(3, 2**40),
    "offset that wraps around": record(3, 2**64 - 32),
    "offsets that overlap": header(lambda told: told["records"][1].__setitem__(3, 0)),
    "sizes whose product wraps around": record(1, [2**62, 2**62]),
    "sizes of nothing": record(1, [0, 0]),
    "sizes of no dimension": record(1, []),
    "sizes of many dimensions": record(1, [1] * 1000),
    "sizes of another matrix": header(lambda told: told["records"][0][1].reverse()),
    "type of nobody's": record(2, 4000),
    "type of other values": record(2, 26),
    "type of blocks": record(2, 8),
    "name that moves the cursor": record(0, "\x1b[2J\x1b[1;1H"),
    "name of many lines": record(0, "blk.1\nError: all is well"),
    "name without end": record(0, "a" * 100_000),
    "name of another tensor": record(0, "blk.0.attn_q.weight.lora_a"),
    "name that occurs twice": header(_twice),
    "architecture of another model": entry("general.architecture", "gpt2"),
    "architecture that moves the cursor": entry("general.architecture", "\x1b[2J"),
    "architecture that is a number": entry("general.architecture", 1, 4),
    "alpha of another scale": entry("adapter.lora.alpha", 3.0),
    "alpha that is not a number": entry("adapter.lora.alpha", float("nan")),
    "alpha that is text": entry("adapter.lora.alpha", "8", 8),
    "list without end": entry("general.type", [8, ["a"] * 3], 9),
    "alignment of nothing": header(
        lambda told: told.update(
            entries=[*told["entries"], ["general.alignment", 4, 0]], entry_count=told["entry_count"] + 1
        )
    ),
    "direction of another layer": record(0, "direction.0", CONTROL_VECTOR),
    "direction of no layer": record(0, "direction.x", CONTROL_VECTOR),
    "direction of another size": record(1, [12], CONTROL_VECTOR),
    "control vector cut in its tensors": cut(0.7, CONTROL_VECTOR),
    "control vector that is a link out": linked(CONTROL_VECTOR),
    "hole of gigabytes": sparse(LARGE_BYTES),
    "hole of gigabytes that is a tensor": sparse(LARGE_BYTES, values=LARGE_BYTES // 4 - 1000),
}

GGUF_MANIFESTS: dict[str, Attack] = {
    "files of nobody's": manifest(lambda whole: whole["gguf_adapter"].update(files=["sea_edit/sea_edit.json", "x"])),
    "files that lead up": manifest(lambda whole: whole["gguf_adapter"].update(files=["../secret.gguf"])),
    "no files": manifest(lambda whole: whole["gguf_adapter"].update(files=[])),
    "rank of text": manifest(lambda whole: whole["gguf_adapter"].update(rank="8")),
    "architecture of a list": manifest(lambda whole: whole["gguf_adapter"].update(architecture=["llama"])),
    "nothing of its own": manifest(lambda whole: whole.pop("gguf_adapter") and None),
    "format of another export": manifest(lambda whole: whole.update(format="gguf")),
}
