"""The output directory appears complete or not at all."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner
from transformers import AutoModelForCausalLM

from sea_export.cli import main
from sea_export.errors import InputError, SeaExportError
from sea_export.export.output import check_beside, check_output, check_room, staged_output
from sea_export.files.digests import file_digests
from sea_export.files.reading import read_json
from sea_export.files.writing import write_json
from tests.helpers.checkpoint_files import contents_of
from tests.helpers.messages import naming


def write_old_output(output: Path) -> None:
    output.mkdir()
    (output / "sea_export.json").write_text("{}")
    (output / "old").write_text("old")


def test_output_appears_when_the_context_ends(tmp_path):
    output = tmp_path / "out"
    with staged_output(output, overwrite=False) as staging:
        assert staging.parent == tmp_path / ".out.partial"
        assert not list(staging.iterdir())
        (staging / "deep").mkdir()
        (staging / "deep" / "file").write_text("x")
        assert not output.exists()
    assert contents_of(output) == {"deep/file": b"x"}
    assert list(tmp_path.iterdir()) == [output]
    (tmp_path / "ordinary").mkdir()
    assert output.stat().st_mode == (tmp_path / "ordinary").stat().st_mode


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_nothing_is_left_of_a_failure(tmp_path, error):
    def fails() -> None:
        with staged_output(tmp_path / "out", overwrite=False) as staging:
            (staging / "file").write_text("x")
            raise error

    with pytest.raises(error):
        fails()
    assert not list(tmp_path.iterdir())


def test_failure_to_move_leaves_the_old_output_in_place(tmp_path, monkeypatch):
    output = tmp_path / "out"
    write_old_output(output)
    rename = Path.rename

    def rename_but_not_the_new(path: Path, target: Path) -> Path:
        if path.name == "unfinished":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", rename_but_not_the_new)
    with (
        pytest.raises(SeaExportError, match=naming(output, "Permission denied", tmp_path / ".out.partial")),
        staged_output(output, overwrite=True) as staging,
    ):
        (staging / "new").write_text("new")
    assert contents_of(output).keys() == {"sea_export.json", "old"}
    assert list(tmp_path.iterdir()) == [output]


def test_overwriting_replaces_all_of_the_old_output(tmp_path):
    output = tmp_path / "out"
    write_old_output(output)
    with staged_output(output, overwrite=True) as staging:
        (staging / "new").write_text("new")
        assert (output / "old").exists()
    assert contents_of(output) == {"new": b"new"}
    assert list(tmp_path.iterdir()) == [output]


def test_output_that_came_into_being_meanwhile_is_kept(tmp_path):
    output = tmp_path / "out"
    with pytest.raises(InputError, match=naming(output)), staged_output(output, overwrite=False):
        write_old_output(output)
    assert contents_of(output).keys() == {"sea_export.json", "old"}
    assert list(tmp_path.iterdir()) == [output]


def test_link_to_an_output_stays_a_link(tmp_path):
    write_old_output(tmp_path / "real")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with staged_output(tmp_path / "link", overwrite=True) as staging:
        (staging / "new").write_text("new")
    assert (tmp_path / "link").is_symlink()
    assert contents_of(tmp_path / "real") == {"new": b"new"}


RUN = """
import sys
from pathlib import Path
from sea_export.export.output import staged_output
with staged_output(Path(sys.argv[1]), overwrite=False) as staging:
    (staging / "file").write_text("half")
    print("started", flush=True)
    sys.stdin.read()
"""


def test_what_a_killed_run_left_goes_and_what_a_living_one_writes_stays(tmp_path):
    output = tmp_path / "out"
    command = [sys.executable, "-c", RUN, str(output)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, **pipes, text=True, env=environment) as run:
        assert run.stdout.readline() == "started\n"
        refused(output, "another run")
        with pytest.raises(InputError, match=naming(output, "another run")), staged_output(output, overwrite=False):
            pass
        assert contents_of(tmp_path) == {".out.partial/unfinished/file": b"half"}
        run.send_signal(signal.SIGKILL)
    assert contents_of(tmp_path) == {".out.partial/unfinished/file": b"half"}
    (tmp_path / ".outside.partial").mkdir()
    with staged_output(output, overwrite=False) as staging:
        assert not list(staging.iterdir())
    assert {path.name for path in tmp_path.iterdir()} == {"out", ".outside.partial"}


@pytest.fixture
def killed_while_replacing(tmp_path: Path) -> Path:
    """An output of which a run that was killed had moved the older one away, and not yet put the new one in place."""
    place = tmp_path / ".out.partial"
    place.mkdir()
    write_old_output(place / "replaced")
    (place / "unfinished").mkdir()
    (place / "unfinished" / "new").write_text("half")
    return tmp_path / "out"


def test_an_output_that_a_killed_run_had_moved_away_comes_back_before_anything_else(killed_while_replacing):
    refused(killed_while_replacing, "--overwrite")
    assert list(killed_while_replacing.parent.iterdir()) == [killed_while_replacing]
    assert contents_of(killed_while_replacing).keys() == {"sea_export.json", "old"}


def test_an_output_that_a_killed_run_had_moved_away_stays_until_it_is_replaced(killed_while_replacing):
    output = killed_while_replacing
    check_output(output.parent / "another", overwrite=False)
    assert not output.exists()
    with staged_output(output, overwrite=True) as staging:
        assert contents_of(output).keys() == {"sea_export.json", "old"}
        (staging / "new").write_text("new")
    assert list(output.parent.iterdir()) == [output]
    assert contents_of(output) == {"new": b"new"}


def test_what_is_half_removed_never_comes_back(tmp_path):
    (tmp_path / ".out.partial" / "removed").mkdir(parents=True)
    (tmp_path / ".out.partial" / "removed" / "older").write_text("x")
    check_output(tmp_path / "out", overwrite=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("kind", ["file", "folder", "link", "broken link", "pipe"])
def test_what_others_have_in_the_place_beside_an_output_is_not_touched(tmp_path, kind, overwrite):
    """Before anything is computed, and again when the output is written."""
    place, output = tmp_path / ".out.partial", tmp_path / "out"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "unfinished").write_text("years of work")
    if kind == "file":
        place.write_text("mine")
    elif kind == "folder":
        place.mkdir()
        (place / "thesis.tex").write_text("years of work")
    elif kind == "pipe":
        os.mkfifo(place)
    else:
        place.symlink_to(tmp_path / ("mine" if kind == "link" else "nothing"))
    before = sorted(str(path) for path in tmp_path.rglob("*"))
    refused(output, place, overwrite=overwrite)
    with pytest.raises(InputError, match=naming(place)), staged_output(output, overwrite=overwrite):
        pass
    assert sorted(str(path) for path in tmp_path.rglob("*")) == before


def test_folders_with_similar_names_are_of_no_concern(tmp_path):
    for name in (".out.replaced", ".out.removed-1", ".out.unfinished"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine").write_text("x")
    with staged_output(tmp_path / "out", overwrite=False) as staging:
        (staging / "new").write_text("new")
    assert {path.name for path in tmp_path.iterdir()} == {".out.replaced", ".out.removed-1", ".out.unfinished", "out"}


@pytest.mark.parametrize("length", [248, 255, 300])
def test_names_that_are_too_long(tmp_path, length):
    output = tmp_path / ("n" * length)
    with pytest.raises(InputError, match="name too long"):
        check_output(output, overwrite=False)


def test_other_results_are_not_written_into_the_output(tmp_path):
    check_beside(tmp_path / "out", None, tmp_path / "cache", tmp_path / "output", tmp_path)
    (tmp_path / "link").symlink_to(tmp_path / "out")
    for other in (tmp_path / "out", tmp_path / "out" / "figures.json", tmp_path / "link" / "cache"):
        with pytest.raises(InputError, match=naming(other)):
            check_beside(tmp_path / "out", tmp_path / "cache", other)


def refused(output: Path, *facts: object, **options: object) -> None:
    with pytest.raises(InputError, match=naming(output.name, *facts)):
        check_output(output, **({"overwrite": False} | options))


def test_existing_outputs(tmp_path):
    """Only what sea-export wrote, or nothing, may be overwritten, and only when asked."""
    output = tmp_path / "out"
    check_output(output, overwrite=False)
    output.mkdir()
    refused(output, "--overwrite")
    check_output(output, overwrite=True)
    (output / "thesis.tex").write_text("years of work")
    refused(output, "sea-export", overwrite=True)
    for own in ("sea_export.json", "sea_edit.json"):
        (output / own).write_text("{}")
        check_output(output, overwrite=True)
        refused(output, "--overwrite")
        (output / own).unlink()
    shutil.rmtree(output)
    output.write_text("a file")
    refused(output, "directory", overwrite=True)
    assert output.read_text() == "a file"


def mixes_with(output: Path, *base: Path) -> None:
    with pytest.raises(InputError, match=naming(base[0].resolve())):
        check_room(output, base, needed_bytes=0)


def test_outputs_that_mix_with_the_base(tmp_path):
    base = tmp_path / "models" / "base"
    base.mkdir(parents=True)
    for output in (base, base / "out", base / "deep" / "out", tmp_path / "models", base / ".." / "base" / "out"):
        mixes_with(output, base)
    (tmp_path / "link").symlink_to(base)
    mixes_with(tmp_path / "link" / "out", base)
    mixes_with(base / "out", base, tmp_path / "elsewhere")
    check_room(tmp_path / "models" / "base-edited", [base], needed_bytes=0)


def test_an_output_beside_a_file_that_is_the_base_is_no_mix(tmp_path):
    base = tmp_path / "models" / "base.gguf"
    base.parent.mkdir()
    base.write_bytes(b"GGUF")
    check_room(tmp_path / "models" / "out", [base], needed_bytes=0)
    mixes_with(tmp_path / "models", base)
    mixes_with(base, base)


@pytest.mark.parametrize("where", ["the base itself", "inside of the base", "around the base"])
@pytest.mark.parametrize("command", ["fit-and-save", "fit", "save"])
def test_commands_refuse_an_output_that_mixes_with_the_base(command, where, tiny_checkpoint, fit_tiny, tmp_path):
    base = tmp_path / "models" / "base"
    shutil.copytree(tiny_checkpoint, base)
    output = {"the base itself": base, "inside of the base": base / "out", "around the base": base.parent}[where]
    (output if output.is_dir() else tmp_path).joinpath("sea_export.json").write_text("{}")  # as if it were ours
    before = contents_of(tmp_path)
    edit = tmp_path / "edit"
    fit_tiny(AutoModelForCausalLM.from_pretrained(base)).save(edit)
    source = [edit, output, "--base", base] if command == "save" else [base, output]
    result = CliRunner().invoke(main, [command, *map(str, source), "--overwrite"])
    assert result.exit_code == 2, result.output
    assert str(base) in result.output
    shutil.rmtree(edit)
    assert contents_of(tmp_path) == before


def test_parents_that_are_missing_or_not_writable(tmp_path, monkeypatch):
    refused(tmp_path / "absent" / "out", tmp_path / "absent")
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    refused(tmp_path / "out", tmp_path)


def test_disk_without_room(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=2_500_000_000))
    check_room(tmp_path / "out", [], needed_bytes=2_500_000_000)
    with pytest.raises(InputError, match=naming("3.00 GB", "2.50 GB")):
        check_room(tmp_path / "out", [], needed_bytes=3_000_000_000)


def test_json_round_trip(tmp_path):
    data = {"b": [1, 2.5, None], "a": "é"}
    write_json(tmp_path / "x.json", data)
    assert read_json(tmp_path / "x.json") == data
    assert list(read_json(tmp_path / "x.json")) == ["b", "a"]
    assert (tmp_path / "x.json").read_text(encoding="utf-8").endswith("\n")
    assert "é" in (tmp_path / "x.json").read_text(encoding="utf-8")
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "y.json", {"loss": float("nan")})


def test_json_that_cannot_be_read(tmp_path):
    with pytest.raises(InputError, match=naming(tmp_path / "absent.json", "No such file")):
        read_json(tmp_path / "absent.json")
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(InputError, match=naming(tmp_path / "x.json", "JSON")):
        read_json(tmp_path / "x.json")


def test_file_digests(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "b").write_bytes(b"x" * 3_000_000)
    (tmp_path / "a").write_bytes(b"")
    digests = file_digests(tmp_path)
    assert list(digests) == ["a", "deep/b"]
    assert digests["a"] == hashlib.sha256(b"").hexdigest()
    assert digests["deep/b"] == hashlib.sha256(b"x" * 3_000_000).hexdigest()
