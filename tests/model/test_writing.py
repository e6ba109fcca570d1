"""A file that is replaced is the old one or the new one, whatever happens."""

from __future__ import annotations

import os

import pytest

from sea_export.files.writing import flush, write_text
from tests.helpers.checkpoint_files import contents_of


@pytest.mark.parametrize("point", ["fsync", "replace"])
def test_a_file_that_cannot_be_replaced_stays(point, tmp_path, monkeypatch):
    def fails(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    file = tmp_path / "figures.json"
    write_text(file, "old")
    monkeypatch.setattr(os, point, fails)
    with pytest.raises(OSError, match="No space"):
        write_text(file, "new")
    assert contents_of(tmp_path) == {"figures.json": b"old"}


def test_what_a_killed_run_left_is_replaced_too(tmp_path):
    (tmp_path / ".figures.json.unfinished").write_text("half of something that was longer")
    write_text(tmp_path / "figures.json", "é")
    assert contents_of(tmp_path) == {"figures.json": "é".encode()}
    flush(tmp_path)
