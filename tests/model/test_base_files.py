"""The base is one thing during a run: a change of it is found before an output appears."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

import sea_export
from sea_export import saving
from sea_export.cli import main
from sea_export.files.cloning import can_clone, clone_file
from sea_export.files.digests import file_digest
from sea_export.fitting import fit_base
from sea_export.model.base import open_base
from sea_export.model.base_files import BaseFiles
from tests.helpers.messages import naming
from tests.helpers.parameters import UNMEASURED
from tests.helpers.tampering import change_json, one_unit

WEIGHTS = "model.safetensors"


@pytest.fixture
def base(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A base that may be changed."""
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "base"))


def in_place(base: Path) -> None:
    """Changes one byte, and puts the time of the change back."""
    file = base / WEIGHTS
    before = file.stat()
    with open(file, "r+b") as stream:
        stream.seek(-1, os.SEEK_END)
        stream.write(b"\x01")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def replaced(base: Path) -> None:
    """Puts another file in its place, of the same size and with the same times."""
    other = base.parent / "other"
    other.mkdir()
    shutil.copy2(base / WEIGHTS, other)
    in_place(other)
    (other / WEIGHTS).rename(base / WEIGHTS)


CHANGES: dict[str, Callable[[Path], None]] = {
    "a byte": in_place,
    "another file": replaced,
    "one number": one_unit("model.norm.weight", (3,)),
    "no file": lambda base: (base / WEIGHTS).unlink(),
    "config.json": change_json("config.json", rope_theta=5.0),
    "tokenizer.json": lambda base: (base / "tokenizer.json").write_text("{}", encoding="utf-8"),
    "generation_config.json": lambda base: (base / "generation_config.json").unlink(),
}
each_change = pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())


@each_change
@pytest.mark.parametrize("digested", [False, True])
def test_a_changed_base_is_no_longer_the_one_that_was_opened(digested: bool, change, base: Path) -> None:
    with open_base(str(base)) as opened:
        if digested:
            _ = opened.weight_digests
        opened.files.check()
        change(base)
        with pytest.raises(sea_export.SeaExportError, match="has changed since the base was opened"):
            opened.files.check()


def test_a_file_that_changes_before_its_digest_is_taken_is_found(base: Path) -> None:
    with open_base(str(base)) as opened:
        replaced(base)
        with pytest.raises(sea_export.SeaExportError, match=naming(WEIGHTS)):
            _ = opened.weight_digests


@pytest.mark.parametrize("touch", [Path.touch, lambda file: file.chmod(0o600), lambda file: os.link(file, f"{file}2")])
def test_a_file_that_was_only_touched_is_the_same(touch, base: Path) -> None:
    with BaseFiles(base, [WEIGHTS]) as files:
        assert files.digests([WEIGHTS]) == {WEIGHTS: file_digest(base / WEIGHTS)}
        touch(base / WEIGHTS)
        files.check()


@pytest.mark.parametrize("format", ["merged", "adapter", "custom-code", "gguf-adapter"])
@each_change
def test_no_output_appears_if_the_base_changes_while_it_is_made(
    change, format: str, base: Path, fit_tiny, llama, tmp_path: Path, monkeypatch
) -> None:
    describe = saving.write_description

    def change_first(*arguments: object) -> None:
        change(base)
        describe(*arguments)

    monkeypatch.setattr(saving, "write_description", change_first)
    with pytest.raises(sea_export.SeaExportError, match="has changed since the base was opened"):
        sea_export.save(fit_tiny(llama), base, tmp_path / "out", format=format, verify=False)
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "other") == ["base"]


@pytest.mark.parametrize("command", ["fit", "fit-and-save"])
@pytest.mark.parametrize("change", [in_place, replaced])
def test_no_edit_appears_if_the_base_changes_during_the_fit(
    change, command: str, base: Path, demonstrations, tmp_path: Path, monkeypatch
) -> None:
    fit = fit_base.fit_any_strength

    def change_after(*arguments: object, **options: object) -> object:
        fitted = fit(*arguments, **options)
        change(base)
        return fitted

    monkeypatch.setattr(fit_base, "fit_any_strength", change_after)
    given = (command, str(base), str(tmp_path / "new"), "--demonstrations", "builtin:truthfulness", "--limit", "8")
    result = CliRunner().invoke(main, [*given, "--layers", "last:1", *UNMEASURED])
    assert result.exit_code == 1, result.output
    assert "has changed since the base was opened" in result.stderr
    assert not (tmp_path / "new").exists()


def test_a_base_that_changes_while_it_is_converted_is_refused(base: Path, tmp_path: Path, monkeypatch) -> None:
    import torch
    from safetensors.torch import load_file

    from sea_export.model import base as module

    torch.save(load_file(base / WEIGHTS), base / "pytorch_model.bin")
    (base / WEIGHTS).unlink()
    convert = module.convert_pickles

    def change_after(directory: Path, destination: Path) -> None:
        convert(directory, destination)
        (directory / "tokenizer.json").write_text("{}", encoding="utf-8")

    monkeypatch.setattr(module, "convert_pickles", change_after)
    with pytest.raises(sea_export.SeaExportError, match=naming("tokenizer.json")), open_base(str(base)):
        pass


def test_a_custom_code_output_stays_what_it_is_when_its_base_is_changed_in_place(
    base: Path, fit_tiny, llama, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    sea_export.save(fit_tiny(llama), base, output, format="custom-code", verify=False)
    written = (output / f"base-{WEIGHTS}").read_bytes()
    in_place(base)
    assert (output / f"base-{WEIGHTS}").read_bytes() == written
    with pytest.raises(sea_export.InputError, match=naming("base", WEIGHTS)):
        sea_export.verify(output, base)


# Copies that share their blocks


def test_where_blocks_cannot_be_shared_nothing_is_left_behind(base: Path, tmp_path: Path, monkeypatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError("not supported")

    monkeypatch.setattr(fcntl, "ioctl", refuse)
    assert not clone_file(base / WEIGHTS, tmp_path / "copy")
    assert not can_clone(base / WEIGHTS, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


def test_where_blocks_can_be_shared_an_output_needs_no_other_copy(
    base: Path, fit_tiny, llama, tmp_path: Path, monkeypatch
) -> None:
    def share(destination: int, _: int, source: int) -> None:
        os.pwrite(destination, os.pread(source, 10**9, 0), 0)

    monkeypatch.setattr(fcntl, "ioctl", share)
    assert can_clone(base / WEIGHTS, tmp_path)
    sea_export.save(fit_tiny(llama), base, tmp_path / "out", format="custom-code", verify=False)
    assert (tmp_path / "out" / f"base-{WEIGHTS}").read_bytes() == (base / WEIGHTS).read_bytes()
    assert not os.path.samefile(tmp_path / "out" / f"base-{WEIGHTS}", base / WEIGHTS)
