"""Exports of GGUF files, verified and repeated after a while: with another version, another name, another result."""

from __future__ import annotations

import importlib.metadata
import shutil
from pathlib import Path

import pytest
import torch

from sea_export.errors import InputError
from sea_export.export.formats import EditNeeds, export_format
from sea_export.export.manifest import read_manifest
from sea_export.model.base import open_base
from sea_export.model.targets import Target
from sea_export.options import ExportOptions
from sea_export.saving import save, save_checkpoint
from sea_export.verification import compare, compare_by_layer
from sea_export.verification.clean_process import CleanProcess
from sea_export.verification.reproduce import compare_runs
from sea_export.verification.verify import verify
from sea_export.verification.verify_export import model_to_verify, verify_export
from tests.helpers.gguf_files import write_gguf
from tests.helpers.tiny_edits import spectral_edit

gguf = pytest.importorskip("gguf")

TARGETS = [Target(1, "mlp")]
EDIT = spectral_edit(TARGETS, size=32)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base, m.gguf, and an unverified export of it."""
    folder = tmp_path_factory.mktemp("gguf")
    write_gguf(folder / "m.gguf", layers=3)
    save(EDIT, folder / "m.gguf", folder / "out", format="gguf", verify=False, dtype=torch.float32)
    return folder


def problems_of(folder: Path, output: Path) -> tuple[str, ...]:
    """What the comparison of the tensors finds, before any prediction is computed."""
    format, options = export_format("gguf"), ExportOptions(format="gguf")
    with open_base(str(folder / "m.gguf"), dtype=torch.float32) as base:
        located = format.locate(base, TARGETS, EditNeeds.of_edit(EDIT), options)
        plan = format.plan(EDIT, base, located, options, lambda: base.load_model())
        return format.check(output, base, EDIT, plan).problems


def test_another_version_tells_other_things_of_the_base(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert problems_of(exported, exported / "out") == ()
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "99.0")
    assert problems_of(exported, exported / "out") == ()


def test_any_other_entry_must_be_the_planned_one(exported: Path, tmp_path: Path) -> None:
    for old, new in ((b"general.base_model.count", b"general.base_model.COUNT"), (b"Tiny Title", b"Tiny title")):
        shutil.copytree(exported / "out", tmp_path / old.decode())
        file = tmp_path / old.decode() / "m.gguf"
        file.write_bytes(file.read_bytes().replace(old, new, 1))
        assert "metadata" in problems_of(exported, file.parent)[0]


def test_a_file_of_the_same_name_in_the_current_folder_is_not_read(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a mere name, transformers would take that file."""
    write_gguf(tmp_path / "m.gguf", layers=3, feed_forward=96)
    monkeypatch.chdir(tmp_path)
    with open_base(str(exported / "m.gguf")) as base:
        assert base.load_model().model.layers[0].mlp.up_proj.out_features == 64
    monkeypatch.chdir(exported)
    found = verify(Path("out"), "m.gguf")
    assert found.passed, found.problems


def test_the_base_must_have_its_name_and_contents(exported: Path, tmp_path: Path) -> None:
    shutil.copyfile(exported / "m.gguf", tmp_path / "other.gguf")
    with pytest.raises(InputError, match=r"it has no m\.gguf"):
        verify(exported / "out", tmp_path / "other.gguf")
    contents = (exported / "m.gguf").read_bytes()
    (tmp_path / "m.gguf").write_bytes(contents.replace(b"Tiny Title", b"Tiny title"))
    with pytest.raises(InputError, match=r"its m\.gguf is not that of the base of the manifest"):
        verify(exported / "out", tmp_path / "m.gguf")


def test_a_repeated_run_is_compared_tensor_by_tensor(exported: Path, tmp_path: Path) -> None:
    manifest = read_manifest(exported / "out")
    manifest["edit"]["computation"] = {"dtype": "float32"}
    own = {"format": "gguf", "verify": False, "dtype": torch.float32}
    save(EDIT, exported / "m.gguf", tmp_path / "same", **own)
    assert compare_runs(manifest, exported / "out", tmp_path / "same").verdict == "byte-identical"
    save(EDIT, exported / "m.gguf", tmp_path / "type", gguf_type="F32", **own)
    found = compare_runs(manifest, exported / "out", tmp_path / "type")
    assert "blk.1.ffn_down.weight of m.gguf: its type is F32, and was Q8_0." in found.problems
    assert list(found.tensors) == [("m.gguf", "blk.1.ffn_down.weight")]


@pytest.mark.parametrize(("stored", "asked"), [("Q4_0", "auto"), ("Q4_0", "same"), ("Q5_1", "same"), ("F16", "same")])
def test_the_rounding_of_the_type_is_measured_in_memory_and_layer_by_layer(
    stored: str, asked: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the base has this type already, so that its own weights would not be rounded again."""
    write_gguf(tmp_path / "m.gguf", layers=4, types={"ffn_down": stored})
    edit = spectral_edit([Target(1, "mlp"), Target(2, "mlp")], size=32)
    options = ExportOptions(format="gguf", gguf_type=asked, verify=False)

    def at_once(process: object, directory: Path, sequences: list[list[int]], *given: object, **named: object):
        return lambda: compare.compared(torch.zeros(len(sequences), len(sequences[0]), 32))

    for module in (compare, compare_by_layer):  # another process takes seconds, and is not what this is about
        monkeypatch.setattr(module, "logits_in_subprocess", at_once)
    format, found = export_format("gguf"), []
    with open_base(str(tmp_path / "m.gguf"), dtype=torch.float32) as base:
        save_checkpoint(edit, base, tmp_path / "out", options)
        located = format.locate(base, edit.targets, EditNeeds.of_edit(edit), options)
        plan = format.plan(edit, base, located, options, base.load_model)
        for layerwise in (False, True):
            model = model_to_verify(base, layerwise, None, tmp_path)
            verified = verify_export(tmp_path / "out", base, edit, format, plan, model, CleanProcess())
            assert verified.base_rounding is not None
            found.append(verified.base_rounding.mean_divergence)
    assert found[1] == pytest.approx(found[0], rel=1e-3)
    lowest, highest = {"auto": (1e-6, 1e-2), "same": (1e-4, 1)}[asked] if stored != "F16" else (1e-12, 1e-4)
    assert lowest < found[0] < highest


def test_a_type_of_four_bits_passes(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", layers=3, types={"ffn_down": "Q4_1"})
    result = save(EDIT, tmp_path / "m.gguf", tmp_path / "out", format="gguf", gguf_type="same", dtype=torch.float32)
    assert result.verification is not None
    assert result.verification.rounding_error is not None
    assert result.verification.rounding_error.mean_divergence > 1e-3
