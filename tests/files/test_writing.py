"""A file that is replaced is the old one or the new one, whatever happens, and nothing else is replaced."""

from __future__ import annotations

import errno
import json
import os
import stat
import threading
from pathlib import Path

import pytest

from sea_export.errors import InputError
from sea_export.files.writing import (
    check_appendable,
    check_destinations,
    flush,
    is_stream,
    json_text,
    write_result,
    write_text,
)
from tests.helpers.checkpoint_files import contents_of
from tests.helpers.messages import naming


@pytest.mark.parametrize("write", [write_text, write_result])
@pytest.mark.parametrize("point", ["fsync", "replace"])
def test_a_file_that_cannot_be_replaced_stays(point, write, tmp_path, monkeypatch):
    def fails(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    file = tmp_path / "figures.json"
    write(file, "old")
    monkeypatch.setattr(os, point, fails)
    with pytest.raises(OSError, match="No space"):
        write(file, "new")
    assert contents_of(tmp_path) == {"figures.json": b"old"}


def test_what_a_killed_run_left_goes_and_what_others_have_there_stays(tmp_path):
    """Names that a writer might use for its unfinished file may be links to what is precious."""
    leftover = tmp_path / ".sea-export-unfinished-0123"
    leftover.mkdir()
    (leftover / "file").write_text("half of something that was longer")
    (tmp_path / "precious").write_text("years of work")
    (tmp_path / ".figures.json.unfinished").symlink_to("precious")
    write_text(tmp_path / "figures.json", "é")
    assert contents_of(tmp_path) == {
        "figures.json": "é".encode(),
        ".figures.json.unfinished": b"years of work",
        "precious": b"years of work",
    }
    flush(tmp_path)


def test_a_replaced_file_keeps_its_permissions_and_a_new_one_has_those_of_any_file(tmp_path):
    (tmp_path / "any").write_text("")
    write_result(tmp_path / "new", b"x")
    assert (tmp_path / "new").stat().st_mode == (tmp_path / "any").stat().st_mode
    (tmp_path / "any").chmod(0o600)
    write_result(tmp_path / "any", b"x")
    assert stat.S_IMODE((tmp_path / "any").stat().st_mode) == 0o600


def test_devices_are_written_through(tmp_path):
    (tmp_path / "link").symlink_to("/dev/null")
    for device in (Path("/dev/null"), tmp_path / "link"):
        check_destinations([device, device])
        write_result(device, "x" * 100_000)
    assert Path("/dev/null").is_char_device()
    assert os.readlink(tmp_path / "link") == "/dev/null"
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        write_result(Path("/dev/full"), "x")


def test_open_pipes_are_written_through(tmp_path):
    """What a shell makes of `>(program)`, and /dev/stdout before a bar."""
    end, start = os.pipe()
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.extend(iter(lambda: os.read(end, 65536), b"")))
    reader.start()
    (tmp_path / "link").symlink_to(f"/dev/fd/{start}")
    check_destinations([tmp_path / "link"])
    write_result(tmp_path / "link", "x" * 300_000)
    os.close(start)
    reader.join(60)
    os.close(end)
    assert b"".join(read) == b"x" * 300_000
    assert (tmp_path / "link").is_symlink()


KINDS = ("named pipe", "directory", "link to a file", "link to a directory", "broken link", "link to itself", "socket")


@pytest.mark.parametrize("kind", KINDS)
def test_everything_else_is_refused_and_stays(tmp_path, kind):
    import socket

    target, file = tmp_path / "precious", tmp_path / "figures.json"
    target.write_text("years of work")
    if kind == "named pipe":
        os.mkfifo(file)
    elif kind == "directory":
        file.mkdir()
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(os.path.relpath(file))
    else:
        leads = {"link to a file": target, "link to a directory": tmp_path, "link to itself": file}
        file.symlink_to(leads.get(kind, tmp_path / "nothing"))
    before = os.lstat(file)
    for refuses in (lambda: check_destinations([file]), lambda: check_appendable(file), lambda: write_result(file, "")):
        with pytest.raises(InputError, match=naming(file)):
            refuses()
    assert os.lstat(file) == before
    assert target.read_text() == "years of work"
    assert not (tmp_path / "nothing").exists()


def test_block_devices_are_refused(monkeypatch):
    monkeypatch.setattr(Path, "stat", lambda _, **__: os.stat_result((stat.S_IFBLK | 0o660, *[0] * 9)))
    with pytest.raises(InputError, match="/dev/sda"):
        is_stream(Path("/dev/sda"))


def test_files_that_cannot_be_written_are_refused_beforehand(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    for file in (tmp_path / "absent" / "x", tmp_path / "file" / "x", tmp_path / ("n" * 300)):
        with pytest.raises(InputError, match=naming(file)):
            check_destinations([None, file])
    check_destinations([tmp_path / "file", tmp_path / "new"])
    for protected in (tmp_path, tmp_path / "file"):
        with monkeypatch.context() as patch:
            patch.setattr(os, "access", lambda path, mode, protected=protected: Path(path) != protected)
            with pytest.raises(InputError, match="Permission denied"):
                check_destinations([tmp_path / "file"])


def test_two_results_do_not_have_one_file(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(InputError, match="two results"):
        check_destinations([tmp_path / "x.png", tmp_path / "link" / "x.png"])


def test_what_is_read_is_not_replaced(tmp_path):
    rows, model = tmp_path / "rows.jsonl", tmp_path / "model"
    rows.write_text("{}")
    model.mkdir()
    (model / "config.json").write_text("{}")
    for file in (rows, model / ".." / "rows.jsonl", model / "config.json"):
        with pytest.raises(InputError, match="read"):
            check_destinations([file], read=[str(rows), model, "org/name", None, ""])
    check_destinations([tmp_path / "figures.json", model / "figures.json"], read=[rows, model])


def test_lines_are_appended_to_files_only(tmp_path):
    check_appendable(tmp_path / "new")
    (tmp_path / "old").write_text("{}\n")
    check_appendable(tmp_path / "old")
    with pytest.raises(InputError, match="/dev/null"):
        check_appendable(Path("/dev/null"))


def test_results_are_json_that_no_terminal_obeys():
    data = {"a": [1, float("nan"), float("-inf"), None, True], "b": "\x1b[31m\x9b31m\u202eé\ud800", "c": (2.5,)}
    text = json_text(data)
    assert not any(character in text for character in "\x1b\x9b\u202e\ud800")
    assert "é" in text
    assert json.loads(text) == {"a": [1, None, None, None, True], "b": data["b"], "c": [2.5]}
