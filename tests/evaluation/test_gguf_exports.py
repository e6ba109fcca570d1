"""Exports of GGUF files are measured and compared by the directory that they are in."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from sea_export.cli import main
from sea_export.errors import InputError
from sea_export.evaluation.early_checks import check_comparison, check_evaluation
from sea_export.evaluation.evaluation_options import CompareOptions, EvaluateOptions
from sea_export.model.run_options import RunOptions
from sea_export.model.targets import Target
from sea_export.saving import save
from tests.helpers.gguf_files import write_gguf
from tests.helpers.messages import assert_names
from tests.helpers.tiny_edits import spectral_edit

pytest.importorskip("gguf")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One with a base, m.gguf, the same in parts, and unverified exports of both."""
    folder = tmp_path_factory.mktemp("gguf")
    for name, split in (("m.gguf", 0), ("parts.gguf", 10)):
        write_gguf(folder / name, layers=3, split=split)
        first = min(folder.glob(f"{name.removesuffix('.gguf')}*"))
        options = {"format": "gguf", "verify": False, "dtype": torch.float32}
        save(spectral_edit([Target(1, "mlp")], size=32), first, folder / name.removesuffix(".gguf"), **options)
    return folder


def test_an_export_is_measured_against_its_base(folder: Path) -> None:
    (folder / "rows.jsonl").write_text('{"question": "a b", "choices": ["ab", "bb"], "label": 0}\n' * 3)
    benchmark = f"multiple-choice={folder / 'rows.jsonl'}"
    arguments = ["evaluate", folder / "m", "--against", folder / "m.gguf", "--benchmark", benchmark]
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    assert_names(result.output, "multiple-choice", "3 rows", "difference")


@pytest.mark.parametrize("name", ["m", "parts"])
def test_it_passes_the_early_checks(name: str, folder: Path) -> None:
    options = EvaluateOptions(benchmarks=("damage",), against=str(folder / name))
    check_evaluation(str(folder / name), options, RunOptions())
    check_comparison(str(folder / "m.gguf"), str(folder / name), CompareOptions(), RunOptions())


def test_a_directory_of_any_gguf_files_is_none(folder: Path) -> None:
    with pytest.raises(InputError, match=r"it is a directory of GGUF files. Give one of the files"):
        check_evaluation(str(folder), EvaluateOptions(benchmarks=("damage",)), RunOptions())
