"""The Modelfile for Ollama, checked against its documented grammar."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from sea_export.errors import InputError
from sea_export.export.modelfile import has_modelfile, modelfile, sampling_of_config, sampling_of_gguf, write_modelfile
from sea_export.model.checkpoint import Checkpoint
from sea_export.model.gguf_header import GgufHeader, number_entry, text_entry
from sea_export.model.targets import Target
from sea_export.saving import save
from tests.helpers.tiny_edits import spectral_edit

gguf = pytest.importorskip("gguf")

FLOAT, WHOLE = gguf.GGUFValueType.FLOAT32, gguf.GGUFValueType.INT32


def header(*entries: object) -> GgufHeader:
    return GgufHeader(3, entries, (), 32, 0)


def test_parameters_of_a_gguf_file_are_taken_over() -> None:
    found = sampling_of_gguf(
        header(
            number_entry("general.sampling.temp", 0.6, FLOAT),
            number_entry("general.sampling.top_k", 40, WHOLE),
            number_entry("general.sampling.penalty_last_n", -1, WHOLE),
            number_entry("general.sampling.top_p", float("nan"), FLOAT),
            text_entry("general.sampling.sequence", "top_k;top_p"),
            text_entry("general.sampling.min_p", "0.1"),
        )
    )
    assert modelfile("my model.gguf", found) == (
        "FROM ./my model.gguf\nPARAMETER temperature 0.6\nPARAMETER top_k 40\nPARAMETER repeat_last_n -1\n"
    )


@pytest.mark.parametrize("name", ["two\nlines.gguf", 'a "quoted" name.gguf', "a\x1bname.gguf"])
def test_names_that_the_grammar_has_no_place_for_have_none(name: str) -> None:
    assert modelfile(name, {}) is None


@pytest.mark.parametrize(
    ("contents", "expected"),
    [
        ({"do_sample": True, "temperature": 0.7, "top_k": 20, "repetition_penalty": 1.05}, 3),
        ({"temperature": 0.7, "top_k": 20}, 0),  # transformers does not sample then
        ({"do_sample": True, "temperature": "warm", "top_k": 20.5, "top_p": True}, 0),
    ],
)
def test_parameters_of_a_checkpoint_are_taken_over_where_it_samples(
    contents: dict[str, object], expected: int, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    checkpoint = Path(shutil.copytree(tiny_checkpoint, tmp_path / "base"))
    (checkpoint / "generation_config.json").write_text(json.dumps(contents))
    found = sampling_of_config(Checkpoint.open(checkpoint))
    assert len(found) == expected
    if expected:
        assert found == {"temperature": 0.7, "top_k": 20, "repeat_penalty": 1.05}
    (checkpoint / "generation_config.json").write_text("[")
    with pytest.raises(InputError):
        sampling_of_config(Checkpoint.open(checkpoint))


def test_an_adapter_names_its_base_without_its_place(tiny_checkpoint: Path, tmp_path: Path) -> None:
    base = Path(shutil.copytree(tiny_checkpoint, tmp_path / "base"))
    (base / "generation_config.json").write_text(json.dumps({"do_sample": True, "min_p": 0.05}))
    own = spectral_edit([Target(1, "mlp")], normalization="none")
    save(own, base, tmp_path / "out", format="gguf-adapter", verify=False)
    *comment, from_line, adapter, parameter = (tmp_path / "out" / "Modelfile").read_text().splitlines()
    assert all(line.startswith("#") for line in comment)
    assert (from_line, adapter, parameter) == ("FROM ./base.gguf", "ADAPTER ./sea-lora.gguf", "PARAMETER min_p 0.05")


def test_a_changed_one_is_seen(tmp_path: Path) -> None:
    assert write_modelfile(tmp_path, None) == []
    assert has_modelfile(tmp_path, None)
    assert not has_modelfile(tmp_path, "FROM ./m.gguf\n")
    assert write_modelfile(tmp_path, "FROM ./m.gguf\n") == ["Modelfile"]
    assert has_modelfile(tmp_path, "FROM ./m.gguf\n")
    assert not has_modelfile(tmp_path, None)
    (tmp_path / "Modelfile").write_text("FROM ./other.gguf\n")
    assert not has_modelfile(tmp_path, "FROM ./m.gguf\n")
