"""Exports of GGUF files: written, verified, and refused."""

from __future__ import annotations

import errno
import json
import shutil
import struct
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from transformers import AutoModelForCausalLM

from sea_export.cards.model_card import model_card
from sea_export.cli import main
from sea_export.edit.spectral_edit import SpectralEdit
from sea_export.errors import InputError, SeaExportError
from sea_export.evaluation.loaded_model import open_loaded_model
from sea_export.export.manifest import read_manifest
from sea_export.export.streaming import FileCopy
from sea_export.model.base import open_base
from sea_export.model.header_only import header_only_base
from sea_export.model.run_options import RunOptions
from sea_export.model.targets import Target
from sea_export.options import ExportOptions, FitOptions
from sea_export.saving import locate_fit, save
from sea_export.verification.verify import verify
from tests.helpers.gguf_files import write_gguf, write_gguf_of
from tests.helpers.messages import assert_names
from tests.helpers.tiny_edits import spectral_edit

gguf = pytest.importorskip("gguf")

ONE, BOTH = [Target(1, "mlp")], [Target(1, "attention"), Target(2, "mlp")]


def edit(targets: list[Target], **options: str) -> SpectralEdit:
    return spectral_edit(targets, size=32, **options)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def base(folder: Path, **options: object) -> Path:
    write_gguf(folder / "m.gguf", layers=3, **options)
    return folder / "m.gguf"


def raw_tensors(path: Path) -> dict[str, tuple[str, bytes]]:
    return {one.name: (one.tensor_type.name, one.data.tobytes()) for one in gguf.GGUFReader(path).tensors}


def changed(a: Path, b: Path) -> set[str]:
    before, after = raw_tensors(a), raw_tensors(b)
    assert list(before) == list(after)[: len(before)]
    return {name for name in after if before.get(name) != after[name]}


def test_an_edit_of_one_layer_changes_one_tensor_and_names_the_base(tmp_path: Path) -> None:
    path, output = base(tmp_path), tmp_path / "out"
    result = save(edit(ONE), path, output, format="gguf")
    assert {one.name for one in output.iterdir()} == {"m.gguf", "Modelfile", "README.md", "sea_export.json", "sea_edit"}
    assert (output / "Modelfile").read_text() == "FROM ./m.gguf\n"
    assert changed(path, output / "m.gguf") == {"blk.1.ffn_down.weight"}
    before, after = (gguf.GGUFReader(one).fields for one in (path, output / "m.gguf"))
    new = {name: field.contents() for name, field in after.items() if name not in before}
    assert new.pop("general.base_model.0.description").startswith("m.gguf, before sea-export ")
    assert new == {
        "general.base_model.count": 1,
        "general.base_model.0.name": "Tiny Title",
        "general.quantization_version": 2,
    }
    assert result.report.edited == ("blk.1.ffn_down.weight",)
    verification = result.verification
    assert verification is not None
    assert verification.passed
    assert (verification.changed_tensors, verification.identical_tensors) == (1, 29)
    assert "by the fold" not in verification.statement
    assert verify(output, path).passed


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base, m.gguf, and an unverified export of it."""
    folder = tmp_path_factory.mktemp("gguf")
    save(edit(ONE), base(folder), folder / "out", format="gguf", verify=False)
    return folder


def test_gguf_dump_reads_it(exported: Path) -> None:
    command = [sys.executable, "-m", "gguf.scripts.gguf_dump", "--json", str(exported / "out" / "m.gguf")]
    shown = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert shown["tensors"]["blk.1.ffn_down.weight"]["type"] == "Q8_0"
    assert shown["metadata"]["general.base_model.count"]["value"] == 1


@pytest.mark.parametrize(("stored", "type"), [("Q4_0", "auto"), ("Q4_K", "auto"), ("F16", "auto"), ("Q4_1", "same")])
def test_exports_of_each_type(stored: str, type: str, tmp_path: Path) -> None:
    path = base(tmp_path, types={"ffn_down": stored}, feed_forward=256)
    save(edit(ONE), path, tmp_path / "out", format="gguf", gguf_type=type, verify=stored == "Q4_K", dtype=torch.float32)
    expected = {"Q4_0": "Q8_0", "Q4_K": "Q8_0"}.get(stored, stored)
    assert raw_tensors(tmp_path / "out" / "m.gguf")["blk.1.ffn_down.weight"][0] == expected


def test_attention_and_mlp_outputs_are_edited(tmp_path: Path) -> None:
    path = base(tmp_path)
    save(edit(BOTH), path, tmp_path / "out", format="gguf", gguf_type="F32", verify=False)
    assert changed(path, tmp_path / "out" / "m.gguf") == {"blk.1.attn_output.weight", "blk.2.ffn_down.weight"}


def test_a_constant_becomes_a_bias_that_llama_cpp_reads(tmp_path: Path) -> None:
    path = base(tmp_path)
    result = save(edit(BOTH, center="affine"), path, tmp_path / "out", format="gguf", dtype=torch.float32)
    names = {"blk.1.attn_output.bias", "blk.2.ffn_down.bias"}
    assert set(result.report.added) == names
    assert changed(path, tmp_path / "out" / "m.gguf") == names | {"blk.1.attn_output.weight", "blk.2.ffn_down.weight"}
    # As a base it has the biases, and an edit of it changes them.
    save(edit(BOTH, center="affine"), tmp_path / "out" / "m.gguf", tmp_path / "again", format="gguf", verify=False)
    assert changed(tmp_path / "out" / "m.gguf", tmp_path / "again" / "m.gguf") == changed(
        path, tmp_path / "out" / "m.gguf"
    )
    fields = gguf.GGUFReader(tmp_path / "again" / "m.gguf").fields
    assert fields["general.base_model.count"].contents() == 2
    assert {"general.base_model.0.description", "general.base_model.1.description"} <= fields.keys()


def test_plain_transformers_computes_what_the_edit_computes(tmp_path: Path) -> None:
    path, own = base(tmp_path, types={"ffn_down": "F32"}), edit(ONE)
    save(own, path, tmp_path / "out", format="gguf", verify=False)
    assert largest_difference(tmp_path, own) < 1e-5


def test_a_model_in_parts_stays_in_parts(tmp_path: Path) -> None:
    base(tmp_path, split=12)
    first = tmp_path / "m-00001-of-00003.gguf"
    result = save(edit(ONE), first, tmp_path / "out", format="gguf", dtype=torch.float32)
    assert result.verification is not None
    assert result.verification.passed
    parts = sorted(tmp_path.glob("m-*.gguf"))
    assert [one.name for one in sorted((tmp_path / "out").glob("*.gguf"))] == [one.name for one in parts]
    assert set().union(*(changed(one, tmp_path / "out" / one.name) for one in parts)) == {"blk.1.ffn_down.weight"}
    with pytest.raises(InputError, match=r"--center linear, or join the parts"):
        save(edit(ONE, center="affine"), first, tmp_path / "affine", format="gguf")


@pytest.mark.parametrize("center", ["off", "affine"])
def test_inputs_first_and_biases_that_are_there(center: str, tmp_path: Path) -> None:
    """GPT-2 has its linear maps the other way round in memory, and its output projections have biases."""
    write_gguf_of(tmp_path / "m.gguf", "gpt2")
    targets = [Target(0, "attention"), Target(1, "mlp")]
    own = edit(targets, center=center)
    save(own, tmp_path / "m.gguf", tmp_path / "out", format="gguf", verify=False, dtype=torch.float32)
    assert changed(tmp_path / "m.gguf", tmp_path / "out" / "m.gguf") == {
        f"blk.{name}.{part}" for name in ("0.attn_output", "1.ffn_down") for part in ("weight", "bias")
    }
    assert largest_difference(tmp_path, own) < 1e-4


def test_experts_in_one_tensor(tmp_path: Path) -> None:
    write_gguf_of(tmp_path / "m.gguf", "qwen3moe")
    own = edit(ONE)
    save(own, tmp_path / "m.gguf", tmp_path / "out", format="gguf", verify=False, dtype=torch.float32)
    assert changed(tmp_path / "m.gguf", tmp_path / "out" / "m.gguf") == {"blk.1.ffn_down_exps.weight"}
    assert largest_difference(tmp_path, own) < 1e-4
    with pytest.raises(InputError, match="--center linear"):
        save(edit(ONE, center="affine"), tmp_path / "m.gguf", tmp_path / "affine", format="gguf", verify=False)


def largest_difference(folder: Path, own: SpectralEdit) -> float:
    """How far the predictions of the export are from those of the run-time edit, which differ from the base's."""
    exported = AutoModelForCausalLM.from_pretrained(folder / "out", gguf_file="m.gguf", torch_dtype=torch.float32)
    tokens = torch.tensor([[1, 5, 7, 9, 11]])
    with open_base(str(folder / "m.gguf"), dtype=torch.float32) as opened, torch.inference_mode():
        model = opened.load_model(dtype=torch.float32)
        unedited = model(tokens).logits
        with own.apply(model, opened.output_projections(own.targets)):
            expected = model(tokens).logits
        assert not torch.allclose(unedited, expected, atol=1e-2)
        return float((exported(tokens).logits - expected).abs().max() / expected.abs().max())


def test_commands_know_the_format(exported: Path, tmp_path: Path) -> None:
    file, output = exported / "m.gguf", exported / "out"
    edit(ONE).save(tmp_path / "edit")
    arguments = ("--base", file, "--format", "gguf", "--gguf-type", "F16", "--no-verify")
    saved = run("save", tmp_path / "edit", tmp_path / "saved", *arguments)
    assert_names(saved.output, "1 tensors of type Q8_0 become F16", f"llama-cli -m {tmp_path / 'saved' / 'm.gguf'}")
    assert_names(run("inspect", output).output, "1.mlp")
    compared = run("diff", file, tmp_path / "saved" / "m.gguf").output
    assert_names(compared, "blk.1.ffn_down.weight", "Q8_0", "F16", "1 tensors differ; 29 tensors and 18 keys")
    of_directory = run("diff", file, output).output
    assert_names(of_directory, "blk.1.ffn_down.weight", "1 tensors differ; 29 tensors", f"only in {output}: general.")
    manifest = read_manifest(tmp_path / "saved")
    assert manifest["export"]["gguf_type"] == "F16"
    assert manifest["gguf"] == {"file": "m.gguf", "parts": 1, "types": {"blk.1.ffn_down.weight": "F16"}, "config": {}}
    assert sorted(manifest["base"]["files"]) == ["m.gguf", "model.safetensors"]
    card = " ".join(model_card(manifest).split())
    assert "```bash llama-cli -m m.gguf ```" in card
    assert 'AutoModelForCausalLM.from_pretrained(".", gguf_file="m.gguf")' in card
    with open_loaded_model(str(output), RunOptions()) as loaded:
        assert loaded.name == "m.gguf"


def test_doctor_tells_for_which_bases_it_is(exported: Path, tiny_checkpoint: Path) -> None:
    with header_only_base(str(exported / "m.gguf")) as headers:
        located = locate_fit(headers, ONE, FitOptions(), ExportOptions(format="gguf"))
        assert [one.target for one in located.projections] == ONE
    with open_base(str(tiny_checkpoint)) as opened, pytest.raises(InputError, match="--format merged"):
        locate_fit(opened, ONE, FitOptions(), ExportOptions(format="gguf"))


def test_other_bases_are_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"and convert its output with llama\.cpp's convert_hf_to_gguf\.py"):
        save(spectral_edit(ONE), tiny_checkpoint, tmp_path / "out", format="gguf")
    with pytest.raises(InputError, match="--gguf-type: it goes with --format gguf, not with merged"):
        save(spectral_edit(ONE), tiny_checkpoint, tmp_path / "out", gguf_type="F16")
    assert not (tmp_path / "out").exists()


def test_types_that_cannot_be_written_are_refused(tmp_path: Path) -> None:
    path = base(tmp_path, types={"ffn_down": "Q6_K"}, feed_forward=256)
    with pytest.raises(InputError, match="is stored as Q6_K, which the gguf package reads and cannot write"):
        save(edit(ONE), path, tmp_path / "out", format="gguf", gguf_type="same")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("what", ["tensor", "edited", "key", "type", "padding", "longer"])
def test_verification_finds_what_was_changed_afterwards(what: str, exported: Path, tmp_path: Path) -> None:
    path = exported / "m.gguf"
    shutil.copytree(exported / "out", tmp_path / "out")
    file = tmp_path / "out" / "m.gguf"
    reader = gguf.GGUFReader(file)
    tensors = {one.name: one for one in reader.tensors}
    places = {
        "tensor": tensors["blk.0.ffn_up.weight"].data_offset,
        "edited": tensors["blk.1.ffn_down.weight"].data_offset + 5,
        "key": reader.fields["llama.rope.freq_base"].offset + 40,
        "type": tensors["blk.0.ffn_up.weight"].field.offset + 1,
        "padding": int(reader.data_offset) - 1,
        "longer": file.stat().st_size,
    }
    contents = bytearray(file.read_bytes() + bytes(what == "longer"))
    contents[places[what]] ^= 1
    file.write_bytes(contents)
    manifest = json.loads((tmp_path / "out" / "sea_export.json").read_text())
    assert not verify(tmp_path / "out", path).passed
    # And where the manifest was changed too, so that only the comparison with the base finds it.
    from sea_export.files.digests import file_digest

    manifest["files"]["m.gguf"] = file_digest(file)
    (tmp_path / "out" / "sea_export.json").write_text(json.dumps(manifest))
    with suppress(InputError):  # where the header is broken now
        assert not verify(tmp_path / "out", path).passed


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_a_base_with_numbers_that_are_not_finite_is_refused(value: float, tmp_path: Path) -> None:
    path = base(tmp_path, types={"ffn_down": "F32"})
    start = next(one.data_offset for one in gguf.GGUFReader(path).tensors if one.name == "blk.1.ffn_down.weight")
    contents = bytearray(path.read_bytes())
    contents[start : start + 4] = struct.pack("<f", value)
    path.write_bytes(contents)
    with pytest.raises(InputError, match=r"blk\.1\.ffn_down\.weight: the base has values in it that are infinite"):
        save(edit(ONE), path, tmp_path / "out", format="gguf", verify=False)
    assert [one.name for one in tmp_path.iterdir()] == ["m.gguf"]


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(copy: FileCopy, data: memoryview) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    path = base(tmp_path)
    monkeypatch.setattr(FileCopy, "put", full)
    with pytest.raises(SeaExportError, match="out: it could not be written: No space left on device"):
        save(edit(ONE), path, tmp_path / "out", format="gguf", verify=False)
    assert [one.name for one in tmp_path.iterdir()] == ["m.gguf"]


def test_a_damaged_base_leaves_nothing_behind(tmp_path: Path) -> None:
    path = base(tmp_path)
    whole = path.read_bytes()
    for length in (10, 300, len(whole) // 2, len(whole) - 40):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError):
            save(edit(ONE), path, tmp_path / "out", format="gguf")
    assert [one.name for one in tmp_path.iterdir()] == ["m.gguf"]
