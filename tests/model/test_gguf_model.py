"""GGUF files that would fill the memory when they are unpacked."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from sea_export.cli import main
from sea_export.errors import InputError
from sea_export.model import gguf_model
from sea_export.model.gguf_model import unpack_gguf
from sea_export.model.targets import Target
from tests.helpers.gguf_files import write_gguf
from tests.helpers.messages import assert_names
from tests.helpers.peak_memory import PeakMemory
from tests.helpers.tiny_edits import spectral_edit

gguf = pytest.importorskip("gguf")

from sea_export.model.gguf_header import GgufTensor, encode_header, read_gguf_header  # noqa: E402

GIGABYTE = 10**9
Type = gguf.GGMLQuantizationType


def sparse_file(path: Path, *others: GgufTensor) -> None:
    """A model whose header names other tensors besides its own, and a file of the size that these have."""
    write_gguf(path)
    header, contents = read_gguf_header(path), path.read_bytes()
    tensors = (*header.tensors, *others)
    with open(path, "wb") as stream:
        stream.write(encode_header(header.version, header.entries, tensors, header.alignment))
        stream.write(contents[header.data_start :])
        stream.truncate(stream.tell() + sum(one.nbytes + header.alignment for one in others))
    assert read_gguf_header(path).tensors[-1].name == others[-1].name


@pytest.mark.parametrize(
    "others",
    [
        [GgufTensor("blk.7.ffn_down.weight", (5_000_000, 4000), Type.F16)],
        [GgufTensor("rope_freqs.weight", (10 * GIGABYTE,), Type.F32)],
        [GgufTensor(f"blk.{layer}.ffn_up.weight", (1_000_000, 4000), Type.Q8_0) for layer in range(1, 10)],
    ],
    ids=["a tensor of no layer", "a long vector", "many layers"],
)
def test_forty_gigabytes_of_tensors_that_the_model_lacks_are_refused(others: list[GgufTensor], tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    sparse_file(path, *others)
    assert path.stat().st_size > 38 * GIGABYTE
    spectral_edit([Target(0, "mlp")], size=32).save(tmp_path / "edit")
    arguments = ["save", tmp_path / "edit", tmp_path / "out", "--base", path, "--format", "gguf"]
    memory = PeakMemory() if PeakMemory.is_known() else None
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == 2
    assert_names(result.output, "Error: m.gguf: it stores", "the file has tensors of no model. Download it again.")
    assert memory is None or memory.growth() < GIGABYTE / 2
    assert {one.name for one in tmp_path.iterdir()} == {"m.gguf", "edit"}


def test_a_model_that_does_not_fit_into_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_gguf(tmp_path / "m.gguf", feed_forward=4096)
    (tmp_path / "out").mkdir()
    monkeypatch.setattr(gguf_model, "available_memory", lambda device: 700_000)
    message = r"m\.gguf: its weights need about 0\.0 GB of memory when they are unpacked, and 0\.0 GB are free"
    with pytest.raises(InputError, match=message):
        unpack_gguf(tmp_path / "m.gguf", tmp_path / "out", torch.float32)
    assert not list((tmp_path / "out").iterdir())
    monkeypatch.setattr(gguf_model, "available_memory", lambda device: 10_000_000)
    unpack_gguf(tmp_path / "m.gguf", tmp_path / "out", torch.float32)
    assert (tmp_path / "out" / "model.safetensors").is_file()
