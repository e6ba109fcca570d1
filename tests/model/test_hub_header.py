"""Headers of safetensors files on the Hub are fetched without their values, and checked like those of any file."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from sea_export.errors import InputError
from sea_export.model import hub_header
from sea_export.model.header_only import header_only_base
from sea_export.model.hub_header import download_header
from sea_export.model.safetensors_header import read_header
from tests.helpers.hub_client import connected_hub
from tests.helpers.peak_memory import PeakMemory

FILE = "model.safetensors"


@pytest.mark.parametrize("first", [16, 100, 100_000])
def test_a_header_is_fetched_whatever_comes_with_the_first_request(
    first: int, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_header, "_FIRST_BYTES", first)
    with connected_hub(tmp_path / "home") as hub:
        commit = hub.add_model("org/tiny", tiny_checkpoint)
        download_header("org/tiny", FILE, commit, tmp_path / FILE)
    assert read_header(tmp_path / FILE) == read_header(tiny_checkpoint / FILE)
    assert (tmp_path / FILE).stat().st_size == (tiny_checkpoint / FILE).stat().st_size


def with_header(entries: object) -> bytes:
    text = json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text + bytes(64)


ENTRY = {"dtype": "F32", "shape": [4, 4], "data_offsets": [0, 64]}
FALSE = {
    "text that is multiplied": with_header({"a": {**ENTRY, "shape": [3_000_000_000, "F32"]}}),
    "a list that is multiplied": with_header({"a": {**ENTRY, "shape": [2_000_000_000, [0]]}}),
    "more than all memory": with_header({"a": {**ENTRY, "shape": [2**40, 2**40]}}),
    "no shape": with_header({"a": {"dtype": "F32"}}),
    "not an object": with_header([1, 2]),
    "a length beyond the file": (2**50).to_bytes(8, "little") + b"{}",
    "empty": b"",
}


@pytest.mark.parametrize("contents", FALSE.values(), ids=FALSE)
def test_a_false_header_is_refused_and_takes_no_memory(contents: bytes, tiny_checkpoint: Path, tmp_path: Path) -> None:
    model = shutil.copytree(tiny_checkpoint, tmp_path / "model")
    (model / FILE).write_bytes(contents)
    with connected_hub(tmp_path / "home") as hub:
        hub.add_model("org/tiny", model)
        memory = PeakMemory()
        with pytest.raises(InputError, match=FILE), header_only_base("org/tiny") as base:
            _ = base.checkpoint.tensors
        assert memory.growth() < 300_000_000
