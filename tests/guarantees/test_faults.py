"""Whatever faults an export, the output is whole or not there, the base is as it was, and the next run succeeds."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import sea_export.fitting.collect
import sea_export.model.base
import sea_export.patches.apply_patch
import sea_export.patches.make_patch
import sea_export.saving
from sea_export.edit.spectral_edit import SpectralEdit
from tests.helpers.checkpoint_files import contents_of
from tests.helpers.faults import End, Fault, Script, inject_into_command
from tests.helpers.faulty_exports import FaultyExport, FaultyPatch, faulty_gguf_export, spread
from tests.helpers.parameters import UNMEASURED

pytestmark = pytest.mark.slow

FORMATS = ("merged", "adapter", "custom-code")
EXPORTS = [*itertools.product(FORMATS, ("single", "sharded"), (False,)), ("merged", "sharded", True)]
GGUF_EXPORTS = list(itertools.product(("gguf", "gguf-adapter"), ("single", "sharded"), (False, True)))

LAST_CHANGES = 10

WHOLE = "leaves its output whole or absent and its base untouched"
KILLED = f"An export that is killed {WHOLE}; the next run succeeds and cleans up"
STOPPED = (
    f"An export that Ctrl-C or SIGTERM stops {WHOLE}, cleans up at once, and says so in one line and its exit status"
)
FULL = f"An export whose disk is full or fails {WHOLE}, and says so in one line"
SHORT = f"An export whose reads return too little {WHOLE}"


@pytest.fixture(scope="module")
def edit_directory(llama, fit_tiny: Callable[..., SpectralEdit], tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("edit")
    fit_tiny(llama).save(directory)
    return directory


@pytest.fixture
def directories(tmp_path: Path) -> tuple[Path, Path]:
    """One for outputs, and one for temporary files."""
    made = tmp_path / "outputs", tmp_path / "temporary"
    for directory in made:
        directory.mkdir()
    return made


@pytest.fixture(params=EXPORTS, ids=lambda export: "-".join(map(str, export)))
def export(request, tiny_checkpoint, tiny_sharded_checkpoint, edit_directory, directories) -> FaultyExport:
    format, layout, overwrite = request.param
    base = tiny_checkpoint if layout == "single" else tiny_sharded_checkpoint
    return FaultyExport(format, base, edit_directory, *directories, overwrite)


@pytest.fixture(params=GGUF_EXPORTS, ids=lambda export: "-".join(map(str, export)))
def gguf_export(request, directories, tmp_path) -> FaultyExport:
    pytest.importorskip("gguf")
    format, layout, overwrite = request.param
    return faulty_gguf_export(tmp_path, *directories, parts=layout == "sharded", overwrite=overwrite, format=format)


def over_all(kind: str, end: End, count: int, export: FaultyExport) -> list[Fault]:
    """Some places among all changes, and each of the last ones, in which an old output is replaced."""
    last = range(end.changes - LAST_CHANGES, end.changes) if export.overwrite else ()
    return [*spread(kind, end.changes, count), *(Fault(kind, place) for place in last)]


@pytest.mark.guarantee(KILLED)
def test_kills(export, count_case):
    export.inject(lambda end: over_all("SIGKILL", end, 16, export), count_case)


@pytest.mark.guarantee(STOPPED)
@pytest.mark.parametrize("kind", ["SIGTERM", "SIGINT"])
def test_signals(export, kind, count_case):
    export.inject(lambda end: over_all(kind, end, 6, export), count_case)


@pytest.mark.guarantee(FULL)
def test_writes_that_fail(export, count_case):
    def faults(end: End) -> list[Fault]:
        failing = [fault for kind in ("ENOSPC", "EIO") for fault in over_all(kind, end, 4, export)]
        return [*failing, *spread("limit", max(export.sizes()), 3)]

    export.inject(faults, count_case)


@pytest.mark.guarantee(SHORT)
def test_reads_that_end_early(export, count_case):
    export.inject(lambda end: [*spread("short", end.reads, 3), *spread("end", end.reads, 3)], count_case)


@pytest.mark.guarantee(KILLED)
def test_kills_of_a_gguf_export(gguf_export, count_case):
    gguf_export.inject(lambda end: over_all("SIGKILL", end, 8, gguf_export), count_case)


@pytest.mark.guarantee(STOPPED)
def test_signals_to_a_gguf_export(gguf_export, count_case):
    gguf_export.inject(lambda end: [*spread("SIGTERM", end.changes, 3), *spread("SIGINT", end.changes, 3)], count_case)


@pytest.mark.guarantee(FULL)
def test_writes_of_a_gguf_export_that_fail(gguf_export, count_case):
    def faults(end: End) -> list[Fault]:
        failing = [fault for kind in ("ENOSPC", "EIO") for fault in spread(kind, end.changes, 4)]
        return [*failing, *spread("limit", max(gguf_export.sizes()), 3)]

    gguf_export.inject(faults, count_case)


@pytest.mark.guarantee(SHORT)
def test_reads_of_a_gguf_base_that_end_early(gguf_export, count_case):
    gguf_export.inject(lambda end: [*spread("short", end.reads, 3), *spread("end", end.reads, 3)], count_case)


@pytest.fixture(params=[("merged", False), ("merged", True), ("custom-code", False)], ids=str)
def patched(request, tiny_checkpoint, tiny_sharded_checkpoint, edit_directory, directories, tmp_path) -> FaultyPatch:
    format, overwrite = request.param
    base = tiny_checkpoint if format == "custom-code" else tiny_sharded_checkpoint
    output, patch = tmp_path / "first", tmp_path / "p.safetensors"
    sea_export.save(SpectralEdit.load(edit_directory), base, output, format=format, verify=False)
    sea_export.make_patch(output, patch, base=base)
    point = (sea_export.patches.apply_patch, "staged_output")
    return FaultyPatch(format, base, patch, *directories, overwrite, point)


@pytest.mark.guarantee(KILLED)
def test_kills_of_a_patch_that_is_applied(patched, count_case):
    patched.inject(lambda end: over_all("SIGKILL", end, 12, patched), count_case)


@pytest.mark.guarantee(STOPPED)
def test_signals_to_a_patch_that_is_applied(patched, count_case):
    patched.inject(lambda end: [*spread("SIGTERM", end.changes, 3), *spread("SIGINT", end.changes, 3)], count_case)


@pytest.mark.guarantee(FULL)
def test_writes_of_a_patch_that_fail(patched, count_case):
    def faults(end: End) -> list[Fault]:
        failing = [fault for kind in ("ENOSPC", "EIO") for fault in spread(kind, end.changes, 4)]
        return [*failing, *spread("limit", max(patched.sizes()), 3)]

    patched.inject(faults, count_case)


@pytest.mark.guarantee(SHORT)
def test_reads_of_a_patch_that_end_early(patched, count_case):
    patched.inject(lambda end: [*spread("short", end.reads, 4), *spread("end", end.reads, 4)], count_case)


@pytest.mark.guarantee("A patch that is killed while it is made is whole or absent, and the next run makes it")
def test_kills_of_a_patch_that_is_made(tiny_checkpoint, edit_directory, directories, tmp_path, count_case):
    output, patch = tmp_path / "first", directories[0] / "p.safetensors"
    sea_export.save(SpectralEdit.load(edit_directory), tiny_checkpoint, output, verify=False)

    def script() -> Script:
        undisturbed = yield Fault()
        assert undisturbed.status == 0, undisturbed.message
        whole = patch.read_bytes()
        for kind in ("SIGKILL", "ENOSPC"):
            for fault in spread(kind, undisturbed.changes, 8):
                count_case()
                patch.unlink()
                end = yield fault
                assert not patch.exists() or patch.read_bytes() == whole
                assert end.status == {"SIGKILL": 137, "ENOSPC": 1}[kind] or patch.exists()
                if not patch.exists():
                    end = yield Fault()
                    assert end.status == 0, end.message
                assert patch.read_bytes() == whole
                assert [path.name for path in directories[0].iterdir()] == ["p.safetensors"]

    inject_into_command(
        ["patch", "make", str(output), str(patch), "--base", str(tiny_checkpoint)],
        script(),
        base=tiny_checkpoint,
        directories=directories,
        point=(sea_export.patches.make_patch, "complete_file"),
    )


@pytest.mark.guarantee(KILLED)
def test_kills_while_a_base_is_converted(tiny_checkpoint, edit_directory, directories, tmp_path, count_case):
    base = tmp_path / "pickled"
    shutil.copytree(tiny_checkpoint, base)
    torch.save(load_file(base / "model.safetensors"), base / "pytorch_model.bin")
    (base / "model.safetensors").unlink()
    point = (sea_export.model.base, "scratch_directory")
    converted = FaultyExport("merged", base, edit_directory, *directories, point=point)
    converted.inject(lambda end: spread("SIGKILL", end.changes, 8), count_case)


@pytest.mark.guarantee(KILLED)
def test_kills_of_a_fit_that_keeps_activations(tiny_checkpoint, demonstrations, directories, tmp_path, count_case):
    """What it has kept is used, and the next run fits the same edit."""
    rows = [{"prompt": d.prompt, "positive": d.positive, "negative": d.negative} for d in demonstrations]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    fitted, cache = directories[0] / "edit", directories[0] / "cache"
    cache.mkdir()
    options = ["--demonstrations", tmp_path / "rows.jsonl", "--cache", cache, "--layers", "2", "--batch-tokens", "60"]
    options += UNMEASURED

    def script() -> Script:
        undisturbed = yield Fault()
        assert undisturbed.status == 0, undisturbed.message
        whole = contents_of(fitted)
        for fault in spread("SIGKILL", undisturbed.changes, 12):
            count_case()
            shutil.rmtree(fitted)
            shutil.rmtree(cache)
            end = yield fault
            assert end.status == 137
            assert not fitted.exists() or contents_of(fitted) == whole
            if not fitted.exists():
                end = yield Fault()
                assert end.status == 0, end.message
            assert contents_of(fitted) == whole
            assert {path.name for path in directories[0].iterdir()} == {"edit", "cache"}
            assert not [path for path in cache.rglob("*") if path.name.startswith(".")]

    inject_into_command(
        ["fit", str(tiny_checkpoint), str(fitted), *map(str, options)],
        script(),
        base=tiny_checkpoint,
        directories=directories,
        point=(sea_export.fitting.collect, "ActivationCache"),
    )


# What the checks are worth


@contextmanager
def written_in_place(output: Path, *, overwrite: bool) -> Iterator[Path]:
    output.mkdir(exist_ok=True)
    yield output


@pytest.mark.parametrize("kind", ["SIGKILL", "SIGTERM", "EIO", "limit"])
def test_an_output_that_is_written_in_place_does_not_pass(kind, export_in_place):
    def faults(end: End) -> list[Fault]:
        # Which change is the first to leave a part of an output depends on what else of the process has been counted.
        return [Fault(kind, 25)] if kind == "limit" else spread(kind, end.changes, 8)

    with pytest.raises(AssertionError, match="neither whole nor what it was"):
        export_in_place.inject(faults, lambda: None)


def test_a_base_that_is_written_to_does_not_pass(export_in_place, monkeypatch):
    @contextmanager
    def careless(output: Path, *, overwrite: bool) -> Iterator[Path]:
        with written_in_place(output, overwrite=overwrite) as staging, open(export_in_place.base / "config.json", "a"):
            yield staging

    monkeypatch.setattr(sea_export.saving, "staged_output", careless)
    with pytest.raises(AssertionError, match=r"status=97.*config\.json"):
        export_in_place.inject(lambda end: [], lambda: None)


@pytest.fixture
def export_in_place(tiny_checkpoint, edit_directory, directories, monkeypatch) -> FaultyExport:
    monkeypatch.setattr(sea_export.saving, "staged_output", written_in_place)
    return FaultyExport("merged", tiny_checkpoint, edit_directory, *directories)
