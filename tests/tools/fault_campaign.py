"""Injects faults into exports of every format at random, as tests do at chosen operations, and prints what it tried.

Faults are kills, signals, failing writes and reads that end early, at any operation on files; as root also full file
systems, which are mounted for that. It stops at the first export that is not whole, not cleaned up or not repeated.
"""

from __future__ import annotations

import argparse
import collections
import itertools
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

import sea_export
from sea_export.model.load_model import quiet_transformers
from tests.helpers.faults import End, Fault
from tests.helpers.faulty_exports import READ_FAULTS, STATUS_OF_SIGNAL, WRITE_FAULTS, FaultyExport, faulty_gguf_export
from tests.helpers.tiny_models import tiny_model, tiny_tokenizer

OF_SAFETENSORS = ("merged", "adapter", "custom-code")
OF_GGUF = ("gguf", "gguf-adapter")
FORMATS = (*OF_SAFETENSORS, *OF_GGUF)
MEMORY = 8 << 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=5000, help="default %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="default %(default)s")
    arguments = parser.parse_args()
    quiet_transformers()
    torch.set_num_threads(1)
    tried: collections.Counter[tuple[str, str]] = collections.Counter()
    with tempfile.TemporaryDirectory() as directory, small_file_system(Path(directory)) as (outputs, can_fill):
        generator = random.Random(arguments.seed)
        exports = list(faulty_exports(Path(directory), outputs))
        kinds = [*STATUS_OF_SIGNAL, *WRITE_FAULTS, *READ_FAULTS, *(["full"] if can_fill else [])]
        for number, export in enumerate(exports):
            count = (arguments.cases + number) // len(exports)

            def faults(end: End, export: FaultyExport = export, count: int = count) -> Iterator[Fault]:
                for fault in export.drawn(kinds, end, count, generator):
                    tried[export.format, fault.kind] += 1
                    yield fault

            export.inject(faults, lambda: None)
            print(f"{export.format}, {export.base.name}, overwrite={export.overwrite}: {count}", file=sys.stderr)
    print("| format | " + " | ".join(kinds) + " |\n|---" + "|---" * len(kinds) + "|")
    for format in FORMATS:
        print(f"| {format} | " + " | ".join(str(tried[format, kind]) for kind in kinds) + " |")
    print(f"\n{sum(tried.values())} cases, 0 failures")


def faulty_exports(directory: Path, outputs: Path) -> Iterator[FaultyExport]:
    """Every format of a base in one file and in shards, to a new place and over an old output."""
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    demonstrations = sea_export.load_demonstrations("builtin:truthfulness", limit=8)
    edit = sea_export.fit(model, tokenizer, demonstrations, layers="last:3", explained_variance=0.7)
    edit.save(directory / "edit")
    (directory / "temporary").mkdir()
    for layout, size in (("single", "1GB"), ("sharded", "30KB")):
        base = directory / layout
        model.save_pretrained(base, max_shard_size=size)
        tokenizer.save_pretrained(base)
        for format in OF_SAFETENSORS:
            for overwrite in (False, True):
                written = outputs / f"{format}-{layout}-{overwrite}"
                written.mkdir()
                yield FaultyExport(format, base, directory / "edit", written, directory / "temporary", overwrite)
        for format, overwrite in itertools.product(OF_GGUF, (False, True)):
            own, written = (folder / f"{format}-{layout}-{overwrite}" for folder in (directory, outputs))
            own.mkdir()
            written.mkdir()
            parts = layout == "sharded"
            yield faulty_gguf_export(
                own, written, directory / "temporary", parts=parts, overwrite=overwrite, format=format
            )


@contextmanager
def small_file_system(directory: Path) -> Iterator[tuple[Path, bool]]:
    """A directory for outputs, and whether it is a file system of its own that can be filled: for root alone."""
    outputs = directory / "outputs"
    outputs.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={MEMORY}", "tmpfs", str(outputs)]
    if os.getuid() or subprocess.run(command, capture_output=True).returncode:
        yield outputs, False
        return
    try:
        yield outputs, True
    finally:
        subprocess.run(["umount", str(outputs)], check=True)


if __name__ == "__main__":
    main()
