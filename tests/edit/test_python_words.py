"""Errors of the Python interface are in the words of Python, and those of the command line in its own."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
from click.testing import CliRunner

import sea_export
from sea_export.cli import main
from sea_export.edit.python_words import in_python
from sea_export.errors import InputError
from sea_export.fitting.fit import fit
from sea_export.options import ExportOptions, FitOptions
from tests.helpers.tiny_edits import MLP_TARGETS, spectral_edit


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ("--target: 'x' is no choice. Choose one of mlp.", "target: 'x' is no choice. Choose one of mlp."),
        ("Give the base, or --force.", "Give the base, or force=True."),
        ("--no-verify would keep it.", "verify=False would keep it."),
        ("Raise --explained-variance or --strength, or", "Raise explained_variance= or strength=, or"),
        ("Choose --format custom-code, or leave it.", 'Choose format="custom-code", or leave it.'),
        ("with --center linear).", 'with center="linear").'),
        ("Give --rank 16 too.", "Give rank=16 too."),
        ("allow it with --trust-remote-code.", "allow it with trust_remote_code=True."),
        ("a file -- with dashes, x--y and ---", "a file -- with dashes, x--y and ---"),
    ],
)
def test_words(message: str, words: str) -> None:
    assert in_python(message) == words


def test_functions_of_the_package_speak_python(tmp_path: Path) -> None:
    edit = spectral_edit(MLP_TARGETS)
    for wrong, named in (({"format": "x"}, "format: "), ({"adapter_rank": 0}, "adapter_rank: ")):
        with pytest.raises(InputError, match=f"^{named}"):
            sea_export.save(edit, tmp_path, tmp_path / "out", **wrong)
    with pytest.raises(InputError, match=r"^target: "):
        sea_export.fit(None, None, [], target="sideways")
    for times in (float("nan"), 1e40):
        with pytest.raises(InputError, match=r"^strength: "):
            edit * times
    with pytest.raises(InputError, match=r"^strength: "), edit.apply(None, strength=float("inf")):
        pass
    assert inspect.signature(sea_export.fit) == inspect.signature(fit)
    assert sea_export.fit.__doc__ == fit.__doc__


def test_the_command_line_and_the_classes_speak_their_own(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["fit", "model", str(tmp_path / "edit"), "--no-measure"])
    assert "--strength" in result.stderr
    for options, wrong in ((FitOptions, {"target": "x"}), (ExportOptions, {"format": "x"})):
        with pytest.raises(InputError, match=f"^--{next(iter(wrong))}: "):
            options(**wrong)
